"""The recognizer's transcripts: files for test and predict, and a short table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from datamodules.speech import SpeechBatch
from engine import gather


class TranscriptWriter(Callback):
    """Write transcripts to the run directory, in the order of the data set.

    ``test`` writes ``test_transcripts.csv`` with lines ``id|reference|prediction``; the reference
    is spelled with the vocabulary. ``predict`` writes ``predictions.csv`` with lines
    ``id|transcript``. Both print the first lines.

    Args:
        examples: maximum number of transcripts to print.
    """

    def __init__(self, examples: int = 8) -> None:
        self.examples = examples
        self._rows: list[tuple[int, tuple[str, ...]]] = []

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
        self._collect(batch, outputs["references"], outputs["transcripts"])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[str],
        batch: SpeechBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        self._collect(batch, outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the test's transcripts."""
        self._report(trainer, "test_transcripts.csv", ("id", "reference", "prediction"))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the predictions."""
        self._report(trainer, "predictions.csv", ("id", "transcript"))

    def _collect(self, batch: SpeechBatch, *columns: list[str]) -> None:
        rows = zip(batch.ids, *columns, strict=True)
        self._rows += zip(batch.indices.tolist(), rows, strict=True)

    def _report(self, trainer: Trainer, filename: str, header: Sequence[str]) -> None:
        rows = [row for _, row in sorted(gather(self._rows))]
        self._rows = []
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join("|".join(row) + "\n" for row in rows), encoding="utf-8")
        table = Table(*header, title=f"{min(self.examples, len(rows))} of {len(rows)} in {path}")
        for row in rows[: self.examples]:
            table.add_row(*row)
        Console().print(table)
