"""Speech recognition task: losses, metrics, transcripts."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from datamodules.speech import SpeechBatch
from datamodules.vocabulary import CharacterVocabulary
from engine import TrainingModule
from errors import UserError
from metrics import (
    CharErrorRate,
    CosineSimilarity,
    DamerauLevenshteinSimilarity,
    JaccardSimilarity,
    WordErrorRate,
)
from networks import DecodingStrategy, GreedySearch, SpeechToText


class SpeechRecognizer(TrainingModule):
    """Train a `SpeechToText` network to transcribe speech, and evaluate its transcripts.

    Training, validation and test log means over tokens: ``loss``, which is minimized; ``nll``, the
    negative log-likelihood; and, with a CTC head, ``ctc``. Label smoothing keeps ``loss`` above
    0.66 for a smoothing of 0.1 and 35 tokens; ``nll`` has no such floor. Validation and test also
    decode and log ``cer``, ``wer``, ``jaccard``, ``cosine`` and ``damerau_levenshtein``.

    Args:
        network: network that predicts the next token from waveforms and the text so far.
        vocabulary: vocabulary of the transcripts; filled from the data module.
        label_smoothing: probability mass spread over all tokens in the training target.
        ctc_weight: weight of the encoder's CTC loss (Graves et al. 2006), in [0, 1); the attention
            loss has the remaining weight. CTC teaches the encoder the order of the characters early
            (Kim et al. 2017, "Joint CTC-attention based end-to-end speech recognition").
        decoding: search that finds the transcripts; `GreedySearch` by default.

    Raises:
        ValueError: if ``ctc_weight`` is not in [0, 1), or the network lacks a CTC head to train or
            has one that the loss would leave untrained.
    """

    batch_type = SpeechBatch

    def __init__(
        self,
        network: SpeechToText,
        vocabulary: CharacterVocabulary,
        label_smoothing: float = 0.1,
        ctc_weight: float = 0.0,
        decoding: DecodingStrategy | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= ctc_weight < 1:
            raise ValueError(f"ctc_weight {ctc_weight} is not in [0, 1)")
        if (ctc_weight > 0) != (network.ctc_head is not None):
            raise ValueError(
                f"ctc_weight {ctc_weight} needs network.init_args.ctc={str(ctc_weight > 0).lower()}"
            )
        self.network = network
        self.vocabulary = vocabulary
        self.label_smoothing = label_smoothing
        self.ctc_weight = ctc_weight
        self.decoding = decoding or GreedySearch()
        losses = MetricCollection(
            {name: MeanMetric() for name in ("loss", "nll") + (("ctc",) if ctc_weight else ())},
            # Each metric is updated with its own value.
            compute_groups=False,
        )
        scores = MetricCollection(
            {
                "cer": CharErrorRate(),
                "wer": WordErrorRate(),
                "jaccard": JaccardSimilarity(),
                "cosine": CosineSimilarity(),
                "damerau_levenshtein": DamerauLevenshteinSimilarity(),
            },
            # Groups are formed from equal states, and all perfect scores have equal states.
            compute_groups=False,
        )
        self.val_losses = losses.clone(prefix="val/")
        self.test_losses = losses.clone(prefix="test/")
        self.val_scores = scores.clone(prefix="val/")
        self.test_scores = scores.clone(prefix="test/")

    def setup(self, stage: str) -> None:
        """Check that data and network fit together.

        Raises:
            UserError: if the sample rates differ, or a transcript is too long for the decoder.
        """
        super().setup(stage)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        expected = self.network.features.sample_rate
        if getattr(data, "sample_rate", expected) != expected:
            raise UserError(
                f"data.init_args.sample_rate is {data.sample_rate} Hz, but the network's features "
                f"expect {expected} Hz: set both to the same"
            )
        if hasattr(data, "longest_transcript"):
            characters, source = data.longest_transcript()
            maximum = self.network.decoder.max_tokens - 1  # without the start token
            if characters > maximum:
                raise UserError(
                    f"{source}: the transcript has {characters} characters, but the decoder's "
                    f"max_tokens {maximum + 1} allows {maximum}: raise it, or cut transcripts with "
                    f"--data.init_args.max_characters={maximum}"
                )

    def training_losses(self, batch: SpeechBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of a batch."""
        losses, _, _ = self.losses(batch)
        self.log("train/loss_step", losses["loss"], prog_bar=True, on_step=True, on_epoch=False)
        return losses, batch.target_count()

    def validation_step(self, batch: SpeechBatch) -> None:
        """Evaluate a batch."""
        self._evaluate(batch, self.val_losses, self.val_scores)

    def test_step(self, batch: SpeechBatch) -> dict[str, list[str]]:
        """Evaluate a batch; return its ``references`` and ``transcripts``."""
        references, transcripts = self._evaluate(batch, self.test_losses, self.test_scores)
        return {"references": references, "transcripts": transcripts}

    def predict_step(self, batch: SpeechBatch) -> list[str]:
        """Transcribe a batch; its reference transcripts are not used."""
        return self.transcribe(*self.network.encode(batch.waveforms, batch.lengths))

    def losses(self, batch: SpeechBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Compute the losses of a batch, each a mean over tokens.

        Returns:
            Losses by name; encoded audio (batch, positions, hidden); its mask (batch, positions).
        """
        memory, memory_mask = self.network.encode(batch.waveforms, batch.lengths)
        logits = self.network.decoder(batch.tokens[:, :-1], memory, memory_mask)
        logits, targets = logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten()
        pad = self.vocabulary.pad
        nll = F.cross_entropy(logits, targets, ignore_index=pad)
        loss = F.cross_entropy(
            logits, targets, ignore_index=pad, label_smoothing=self.label_smoothing
        )
        losses = {"nll": nll.detach()}
        if self.ctc_weight > 0:
            total = F.ctc_loss(
                self.network.ctc_log_probabilities(memory).transpose(0, 1),
                batch.tokens[:, 1:],
                memory_mask.sum(1),
                batch.token_lengths - 2,  # without start and stop
                blank=pad,
                reduction="sum",
                zero_infinity=True,  # for clips with fewer positions than characters
            )
            ctc = total / (targets != pad).sum()
            losses["ctc"] = ctc.detach()
            loss = (1 - self.ctc_weight) * loss + self.ctc_weight * ctc
        return {"loss": loss, **losses}, memory, memory_mask

    def _evaluate(
        self, batch: SpeechBatch, loss_metrics: MetricCollection, scores: MetricCollection
    ) -> tuple[list[str], list[str]]:
        losses, memory, memory_mask = self.losses(batch)
        weight = batch.target_count()
        for name, loss in losses.items():
            loss_metrics[name].update(loss.detach(), weight)
        self.log_dict(loss_metrics, batch_size=len(batch.ids))
        transcripts = self.transcribe(memory, memory_mask)
        references = [self.vocabulary.decode(tokens) for tokens in batch.tokens.tolist()]
        scores.update(transcripts, references)
        for name, score in scores.items():
            self.log(name, score, batch_size=len(references), prog_bar=name == "val/cer")
        return references, transcripts

    def transcribe(self, memory: Tensor, memory_mask: Tensor) -> list[str]:
        """Decode encoded audio (batch, positions, hidden) with its mask (batch, positions)."""
        vocabulary = self.vocabulary
        tokens = self.decoding.decode(
            self.network,
            memory,
            memory_mask,
            start=vocabulary.start,
            stop=vocabulary.stop,
            pad=vocabulary.pad,
        )
        return [vocabulary.decode(row) for row in tokens.tolist()]
