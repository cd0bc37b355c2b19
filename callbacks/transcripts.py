"""What the recognizer wrote: files for test and predict, and a short table to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from datamodules.speech import Clip, SpeechBatch
from engine import gather
from lightning_modules.speech_recognizer import Transcripts


class TranscriptWriter(Callback):
    """Write transcripts to the run directory, in the order of the data set.

    ``test`` writes ``test_transcripts.csv``, lines ``id|reference|prediction`` with the reference
    as the vocabulary spells it, and prints the first ones; ``predict`` writes ``predictions.csv``,
    lines ``id|transcript``, and prints them.

    Args:
        examples: most transcripts to print.
    """

    def __init__(self, examples: int = 8) -> None:
        self.examples = examples
        self._transcripts: Transcripts = []

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
        self._transcripts += outputs["transcripts"]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Transcripts,
        batch: SpeechBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        self._transcripts += outputs

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the test's transcripts."""
        data = trainer.datamodule.datasets["test"]  # type: ignore[attr-defined]
        spell = data.vocabulary
        rows = [
            (clip.id, spell.decode(spell.encode(clip.text)), text)
            for clip, text in self._collect(data.clips)
        ]
        self._report(trainer, "test_transcripts.csv", ("id", "reference", "prediction"), rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the predictions."""
        datasets = trainer.datamodule.datasets  # type: ignore[attr-defined]
        clips = (datasets.get("predict") or datasets["test"]).clips
        rows = [(clip.id, text) for clip, text in self._collect(clips)]
        self._report(trainer, "predictions.csv", ("id", "transcript"), rows)

    def _collect(self, clips: list[Clip]) -> list[tuple[Clip, str]]:
        """Gather all processes' transcripts, in the order of the clips."""
        transcripts = sorted(gather(self._transcripts))
        self._transcripts = []
        return [(clips[i], text) for i, text in transcripts]

    def _report(
        self, trainer: Trainer, filename: str, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join("|".join(row) + "\n" for row in rows), encoding="utf-8")
        table = Table(*header, title=f"{min(self.examples, len(rows))} of {len(rows)} in {path}")
        for row in rows[: self.examples]:
            table.add_row(*row)
        Console().print(table)
