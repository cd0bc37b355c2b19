"""Corpora listed in a manifest: JSON Lines, one object per clip."""

import json
from pathlib import Path
from typing import Any

from datamodules.lines import read_lines
from datamodules.speech import SPLITS, SpeechDataModule, Transcript
from errors import UserError

LAYOUT = '{"audio_filepath": …, "text": …}'


class ManifestDataModule(SpeechDataModule):
    """Clips and transcripts of a manifest in NeMo's convention.

    Each line is a JSON object with ``audio_filepath`` (relative to the manifest's folder, or
    absolute), ``text`` and, optionally, ``id`` (by default the path) and ``split``, one of train,
    val and test. Either all lines have a split or none; without, the fractions ``splits`` are used.
    Other fields are ignored.

    Args:
        root: the manifest.
        kwargs: further arguments of `SpeechDataModule`.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)

    def read_transcripts(self) -> list[Transcript]:
        transcripts = [
            read_entry(line, f"{self.root} line {number}", self.root.parent)
            for number, line in enumerate(read_lines(self.root, LAYOUT), start=1)
            if line.strip()
        ]
        if not transcripts:
            raise UserError(f"{self.root} is empty: it needs a JSON object per line")
        return transcripts


def read_entry(line: str, source: str, folder: Path) -> Transcript:
    """Parse a line of a manifest.

    Raises:
        UserError: if it is not a JSON object with the fields of a clip; names the line.
    """
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise UserError(f"{source} is not a JSON object")
    for field in ("audio_filepath", "text"):
        if not isinstance(entry.get(field), str):
            raise UserError(f"{source} lacks the field {field!r}, which must be a string")
    if entry.get("offset"):
        raise UserError(
            f"{source} has the offset {entry['offset']}, but only whole recordings are read: cut "
            "it into clips"
        )
    split = entry.get("split")
    if split is not None and split not in SPLITS:
        raise UserError(f"{source}: split {split!r} must be one of {', '.join(SPLITS)}")
    path = entry["audio_filepath"]
    id = path if entry.get("id") is None else str(entry["id"])
    if "|" in id or "".join(id.splitlines()) != id:
        raise UserError(f"{source}: the id {id!r} must not contain | or a line break")
    return Transcript(id, folder / path, entry["text"], source, split)
