"""The recognizer's transcripts: files for test and predict, and a short table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from datamodules.speech_dataset import SpeechBatch
from engine import RunDirectory, gather, whole_file
from lightning_modules.words import Word


class TranscriptWriter(Callback):
    """Write transcripts to the run directory, in the order of the data set.

    ``test`` writes ``test_transcripts.csv`` with lines ``id|reference|prediction``; the reference
    is spelled with the vocabulary. ``predict`` writes ``predictions.csv`` with lines
    ``id|transcript``. Both print the first lines.

    If the recognizer has a CTC head, they also write ``test_words.jsonl`` and
    ``predictions.jsonl``: for each clip a JSON object with ``id``, ``text`` and ``words``, each
    with ``word``, ``start`` and ``end`` in seconds (null if the clip is too short for its text),
    and ``confidence``.

    Args:
        examples: maximum number of transcripts to print.
    """

    def __init__(self, examples: int = 8) -> None:
        self.examples = examples
        self._rows: list[tuple[int, tuple[str, ...], list[Word] | None]] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SpeechBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        self._collect(batch, outputs, outputs["references"])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SpeechBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        self._collect(batch, outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the test's transcripts."""
        header = ("id", "reference", "prediction")
        run = RunDirectory(Path(trainer.default_root_dir))
        self._report(trainer, run.test_transcripts, run.test_words, header)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the predictions."""
        folder = Path(trainer.default_root_dir)
        paths = folder / "predictions.csv", folder / "predictions.jsonl"
        self._report(trainer, *paths, ("id", "transcript"))

    def _collect(self, batch: SpeechBatch, outputs: Any, *columns: list[str]) -> None:
        rows = zip(batch.ids, *columns, outputs["transcripts"], strict=True)
        words = outputs.get("words") or [None] * len(batch.ids)
        self._rows += zip(batch.indices.tolist(), rows, words, strict=True)

    def _report(
        self, trainer: Trainer, texts: Path, described: Path, header: Sequence[str]
    ) -> None:
        found = sorted(gather(self._rows), key=lambda row: row[0])
        self._rows = []
        if not trainer.is_global_zero:
            return
        rows = [row for _, row, _ in found]
        with whole_file(texts) as part:
            part.write_text("".join("|".join(row) + "\n" for row in rows), encoding="utf-8")
        described.unlink(missing_ok=True)  # of an earlier call
        if any(words is not None for _, _, words in found):
            lines = (describe_words(row[0], row[-1], words or []) for _, row, words in found)
            with whole_file(described) as part:
                part.write_text("".join(lines), encoding="utf-8")
        table = Table(*header, title=f"{min(self.examples, len(rows))} of {len(rows)} in {texts}")
        for row in rows[: self.examples]:
            table.add_row(*row)
        Console(markup=False, emoji=False).print(table)


def describe_words(id: str, text: str, words: list[Word]) -> str:
    """Return a line of JSON with the words of a transcript."""
    described = [word.describe() for word in words]
    return json.dumps({"id": id, "text": text, "words": described}, ensure_ascii=False) + "\n"
