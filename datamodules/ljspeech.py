"""LJ Speech (Ito and Johnson 2017): one reader, 13,100 clips, about 24 hours."""

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from datamodules.clips import AUDIO_SUFFIXES
from datamodules.download import check_digest, download, unpack_folder
from datamodules.lines import read_lines
from datamodules.speech import SpeechDataModule, Transcript
from engine import creation
from errors import UserError

ARCHIVE_URL = "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2"
ARCHIVE_SHA256 = "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"
LAYOUT = "id|transcript|normalized text"


class LJSpeechDataModule(SpeechDataModule):
    """Clips and transcripts in LJ Speech's layout.

    Args:
        root: folder with ``metadata.csv`` (lines ``id|transcript|normalized transcript``, unquoted)
            and ``wavs/<id>.wav``, or ``.flac``, ``.ogg``, ``.opus``, ``.mp3``. If it does not
            exist, the official archive is downloaded.
        url: address of the archive.
        sha256: checksum of the archive.
        kwargs: further arguments of `SpeechDataModule`.
    """

    def __init__(
        self,
        root: str = "data/LJSpeech-1.1",
        url: str = ARCHIVE_URL,
        sha256: str = ARCHIVE_SHA256,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.url = url
        self.sha256 = sha256

    def read_transcripts(self) -> list[Transcript]:
        folder = self.root / "wavs"
        files = (p for p in folder.glob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        others = {p.stem: p for p in files if p.suffix != ".wav"}
        return [
            Transcript(id, others.get(id, folder / f"{id}.wav"), text, source)
            for id, text, source in read_metadata(self.root / "metadata.csv")
        ]

    def get_corpus(self) -> None:
        """Download and unpack the archive if ``root`` does not exist.

        Raises:
            UserError: if this fails; says what to do instead.
        """
        with creation(self.root) as is_missing:
            if is_missing:
                self.make_root()

    def make_root(self) -> None:
        """Create ``root``, complete or not at all."""
        archive = self.root.with_name("LJSpeech-1.1.tar.bz2")
        downloads = not archive.exists()
        if downloads:
            rank_zero_info(f"{self.root} does not exist: downloading LJ Speech 1.1 (2.6 GB)")
            try:
                download(self.url, archive, f"sha256:{self.sha256}")
            except UserError as error:
                raise UserError(
                    f"{error}. {self.root} does not exist: put the archive at {archive} by hand, "
                    "set the data module's root to another folder, or train a recognizer on "
                    "generated speech with --config configs/demo/speech.yaml"
                ) from error
        else:
            check_digest(archive, f"sha256:{self.sha256}")
        unpack_folder(archive, "LJSpeech-1.1", self.root)
        if downloads:
            archive.unlink()


def read_metadata(path: Path) -> list[tuple[str, str, str]]:
    """Read lines ``id|transcript|normalized transcript``; the last field is the text.

    Returns:
        For each line: clip id, normalized transcript, name of the line for messages.

    Raises:
        UserError: if the file is missing or a line is malformed; names the line.
    """
    records = []
    seen: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, LAYOUT), start=1):
        source = f"{path} line {number}"
        fields = line.split("|")
        if len(fields) not in (2, 3):
            raise UserError(f"{source} has {len(fields)} field(s) instead of {LAYOUT}")
        id, text = fields[0].strip(), fields[-1].strip()
        if not id or id != Path(id).name:
            raise UserError(f"{source}: the id {id!r} is not a plain file name")
        if id in seen:
            raise UserError(f"{source} repeats the id {id} of {seen[id]}")
        seen[id] = source
        records.append((id, text, source))
    if not records:
        raise UserError(f"{path} is empty: it needs a line {LAYOUT} per clip")
    return records
