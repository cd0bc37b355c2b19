"""The speech recognition task: losses, metrics, transcripts."""

import torch.nn.functional as F
from torch import Tensor, nn
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
from networks import SpecAugment, SpeechToText, greedy_decode

Transcripts = list[tuple[int, str]]
"""Pairs of a clip's place in its data set and its transcript."""


class SpeechRecognizer(TrainingModule):
    """Train a `SpeechToText` network to write what is spoken, and measure how well it does.

    Logged for training, validation and test, as means over tokens: ``loss`` (what is minimized),
    ``nll`` (plain negative log-likelihood: label smoothing gives the loss a floor of its own, 0.66
    for 0.1 and 35 tokens) and, with a CTC head, ``ctc``. Validation and test also decode greedily
    and log ``cer``, ``wer``, ``jaccard``, ``cosine`` and ``damerau_levenshtein``.

    Args:
        network: from waveforms and the text so far to the next token.
        vocabulary: the data module's.
        augment: of the training spectrograms; None leaves them as they are.
        label_smoothing: probability mass spread over all tokens in the training target.
        ctc_weight: of an auxiliary CTC loss (Graves et al. 2006) on the encoder, which teaches it
            the order of the characters early (Kim et al. 2017, "Joint CTC-attention based
            end-to-end speech recognition"). The head is only there for the loss; 0 leaves it out.
    """

    def __init__(
        self,
        network: SpeechToText,
        vocabulary: CharacterVocabulary,
        augment: SpecAugment | None = None,
        label_smoothing: float = 0.1,
        ctc_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= ctc_weight < 1:
            raise ValueError(f"ctc_weight {ctc_weight} is not in [0, 1)")
        self.network = network
        self.vocabulary = vocabulary
        self.augment = augment
        self.label_smoothing = label_smoothing
        self.ctc_weight = ctc_weight
        self.ctc_head = (
            nn.Linear(network.encoder.hidden_size, len(vocabulary)) if ctc_weight else None
        )
        losses = MetricCollection(
            {name: MeanMetric() for name in ("loss", "nll") + (("ctc",) if ctc_weight else ())},
            # Each is updated with a value of its own.
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
            # Groups are found by equal states, which all perfect scores have.
            compute_groups=False,
        )
        self.val_losses = losses.clone(prefix="val/")
        self.test_losses = losses.clone(prefix="test/")
        self.val_scores = scores.clone(prefix="val/")
        self.test_scores = scores.clone(prefix="test/")

    def setup(self, stage: str) -> None:
        """Check that the data fit the network.

        Raises:
            UserError: if the sample rates differ, or a transcript is too long for the decoder.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        super().setup(stage)
        if not hasattr(data, "sample_rate"):
            return
        expected = self.network.features.sample_rate
        if data.sample_rate != expected:
            raise UserError(
                f"data.init_args.sample_rate is {data.sample_rate} Hz, but the network's features "
                f"expect {expected} Hz: set both to the same"
            )
        longest = self.network.decoder.max_tokens - 1  # one is the start token
        for dataset in data.datasets.values():
            for clip in dataset.clips:
                characters = len(self.vocabulary.encode_characters(clip.text))
                if characters > longest:
                    raise UserError(
                        f"{clip.source}: the transcript has {characters} characters, but the "
                        f"decoder's max_tokens {longest + 1} allows {longest}: raise it, or cut "
                        f"with --data.init_args.max_characters={longest}"
                    )

    def training_losses(self, batch: SpeechBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of a batch."""
        losses, _, _ = self.losses(batch)
        self.log("train/loss_step", losses["loss"], prog_bar=True, on_step=True, on_epoch=False)
        return losses, batch.target_count()

    def validation_step(self, batch: SpeechBatch) -> None:
        """Measure one batch."""
        self._evaluate(batch, self.val_losses, self.val_scores)

    def test_step(self, batch: SpeechBatch) -> dict[str, Transcripts]:
        """Measure one batch; return its ``transcripts``."""
        return {"transcripts": self._evaluate(batch, self.test_losses, self.test_scores)}

    def predict_step(self, batch: SpeechBatch) -> Transcripts:
        """Return the transcripts of one batch; needs none in it."""
        return self.transcribe(batch, *self.network.encode(batch.waveforms, batch.lengths))

    def losses(self, batch: SpeechBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the losses by name, the encoded audio and its mask.

        The encodings are (batch, positions, hidden), the mask is (batch, positions).
        """
        features, frames = self.network.features(batch.waveforms, batch.lengths)
        if self.augment is not None:
            features = self.augment(features, frames)
        memory, memory_mask = self.network.encoder(features, frames)
        logits = self.network.decoder(batch.tokens[:, :-1], memory, memory_mask)
        logits, targets = logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten()
        pad = self.vocabulary.pad
        nll = F.cross_entropy(logits, targets, ignore_index=pad)
        loss = F.cross_entropy(
            logits, targets, ignore_index=pad, label_smoothing=self.label_smoothing
        )
        losses = {"nll": nll.detach()}
        if self.ctc_head is not None:
            ctc = (
                F.ctc_loss(
                    self.ctc_head(memory).float().log_softmax(-1).transpose(0, 1),
                    batch.tokens[:, 1:],
                    memory_mask.sum(1),
                    batch.token_lengths - 2,  # without start and stop
                    blank=pad,
                    reduction="sum",
                    zero_infinity=True,  # for clips with fewer positions than characters
                )
                / (targets != pad).sum()
            )
            losses["ctc"] = ctc.detach()
            loss = (1 - self.ctc_weight) * loss + self.ctc_weight * ctc
        return {"loss": loss, **losses}, memory, memory_mask

    def _evaluate(
        self, batch: SpeechBatch, loss_metrics: MetricCollection, scores: MetricCollection
    ) -> Transcripts:
        losses, memory, memory_mask = self.losses(batch)
        self._sum_losses(loss_metrics, losses, batch)
        self.log_dict(loss_metrics, batch_size=len(batch.indices))
        transcripts = self.transcribe(batch, memory, memory_mask)
        references = [self.vocabulary.decode(tokens) for tokens in batch.tokens.tolist()]
        scores.update([text for _, text in transcripts], references)
        for name, score in scores.items():
            self.log(name, score, batch_size=len(references), prog_bar=name == "val/cer")
        return transcripts

    def transcribe(self, batch: SpeechBatch, memory: Tensor, memory_mask: Tensor) -> Transcripts:
        vocabulary = self.vocabulary
        tokens = greedy_decode(
            self.network.decoder,
            memory,
            memory_mask,
            start=vocabulary.start,
            stop=vocabulary.stop,
            pad=vocabulary.pad,
        )
        texts = [vocabulary.decode(row) for row in tokens.tolist()]
        return list(zip(batch.indices.tolist(), texts, strict=True))

    @staticmethod
    def _sum_losses(
        metrics: MetricCollection, losses: dict[str, Tensor], batch: SpeechBatch
    ) -> None:
        weight = batch.target_count()
        for name, loss in losses.items():
            metrics[name].update(loss.detach(), weight)
