"""Speech recognition task: losses, metrics, transcripts."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MetricCollection

from datamodules.speech_dataset import SpeechBatch
from datamodules.vocabulary import CharacterVocabulary
from engine import gather
from errors import UserError
from lightning_modules.character_task import CharacterTask
from lightning_modules.words import Calibration, Word, find_words, score_words
from metrics import (
    CharErrorRate,
    CosineSimilarity,
    DamerauLevenshteinSimilarity,
    JaccardSimilarity,
    WeightedMean,
    WordErrorRate,
)
from networks import DecodingStrategy, GreedySearch, SpeechToText

LJSPEECH_LONGEST = 10.1
"""Length in seconds of LJ Speech's longest clip."""


class SpeechRecognizer(CharacterTask):
    """Train a `SpeechToText` network to transcribe speech, and evaluate its transcripts.

    Training, validation and test log means over tokens: ``loss``, which is minimized; ``nll``, the
    negative log-likelihood; and, with a CTC head, ``ctc``. Label smoothing keeps ``loss`` above
    0.66 for a smoothing of 0.1 and 35 tokens; ``nll`` has no such floor. Validation and test also
    decode and log ``cer``, ``wer``, ``jaccard``, ``cosine`` and ``damerau_levenshtein``; test also
    logs ``cer_normalized`` and ``wer_normalized`` (`normalize_transcript`).

    Args:
        network: network that predicts the next token from waveforms and the text so far.
        vocabulary: vocabulary of the transcripts; filled from the data module.
        label_smoothing: probability mass spread over all tokens in the training target.
        ctc_weight: weight of the encoder's CTC loss (Graves et al. 2006), in [0, 1); the attention
            loss has the remaining weight. CTC teaches the encoder the order of the characters early
            (Kim et al. 2017, "Joint CTC-attention based end-to-end speech recognition").
        decoding: search that finds the transcripts; `GreedySearch` by default.
        test_decoding: search for test and predict; by default the same as ``decoding``.

    Attributes:
        longest_clip: length in seconds of the longest training clip.

    Raises:
        ValueError: if ``label_smoothing`` or ``ctc_weight`` is out of range, or the network lacks a
            CTC head to train or has one that the loss would leave untrained, or a decoding strategy
            does not fit it.
    """

    network: SpeechToText
    batch_type = SpeechBatch
    mixed_precision = True

    def __init__(
        self,
        network: SpeechToText,
        vocabulary: CharacterVocabulary,
        label_smoothing: float = 0.1,
        ctc_weight: float = 0.0,
        decoding: DecodingStrategy | None = None,
        test_decoding: DecodingStrategy | None = None,
    ) -> None:
        super().__init__(network, vocabulary)
        if not 0 <= ctc_weight < 1:
            raise ValueError(f"ctc_weight {ctc_weight} is not in [0, 1)")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing {label_smoothing} is not in [0, 1]")
        if (ctc_weight > 0) != (network.ctc_head is not None):
            raise ValueError(
                f"ctc_weight {ctc_weight} needs network.init_args.ctc={str(ctc_weight > 0).lower()}"
            )
        for strategy in filter(None, (decoding, test_decoding)):
            strategy.check(network)
        self.label_smoothing = label_smoothing
        self.ctc_weight = ctc_weight
        self.calibration = Calibration()
        self.longest_clip = LJSPEECH_LONGEST
        self._scored_words: list[tuple[float, bool]] = []
        self.decoding = decoding or GreedySearch()
        self.test_decoding = test_decoding or self.decoding
        names = ("loss", "nll", "ctc") if ctc_weight else ("loss", "nll")
        losses = MetricCollection(
            {name: WeightedMean() for name in names},
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
        self.test_scores.add_metrics(
            {
                "cer_normalized": CharErrorRate(normalize=True),
                "wer_normalized": WordErrorRate(normalize=True),
            }
        )

    def setup(self, stage: str) -> None:
        """Check that data and network fit together.

        Raises:
            UserError: if the sample rates differ, a transcript is too long for the decoder, or a
                language model has another alphabet.
        """
        super().setup(stage)
        for decoding in (self.decoding, self.test_decoding):
            model = getattr(decoding, "language_model", None)
            alphabet = getattr(model, "alphabet", self.vocabulary.alphabet)
            if alphabet != self.vocabulary.alphabet:
                raise UserError(
                    f"the language model's alphabet {alphabet!r} differs from the data's "
                    f"{self.vocabulary.alphabet!r}: train it with the same data.init_args.alphabet"
                )
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        expected = self.network.features.sample_rate
        if getattr(data, "sample_rate", expected) != expected:
            raise UserError(
                f"data.init_args.sample_rate is {data.sample_rate} Hz, but the network's features "
                f"expect {expected} Hz: set both to the same"
            )
        if stage == "fit" and hasattr(data, "longest_clip"):
            self.longest_clip = data.longest_clip()
        if hasattr(data, "longest_transcript"):
            characters, source = data.longest_transcript()
            maximum = self.network.decoder.max_tokens - 1  # without the start token
            if characters > maximum:
                raise UserError(
                    f"{source}: the transcript has {characters} characters, but the decoder's "
                    f"max_tokens {maximum + 1} allows {maximum}: raise it, or cut transcripts with "
                    f"--data.init_args.max_characters={maximum}"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what predict needs."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["longest_clip"] = self.longest_clip
        checkpoint["calibration"] = list(self.calibration)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what predict needs.

        Raises:
            UserError: if the weights are of other characters.
        """
        super().on_load_checkpoint(checkpoint)
        self.longest_clip = checkpoint.get("longest_clip", LJSPEECH_LONGEST)
        self.calibration = Calibration(*checkpoint.get("calibration", ()))

    def adapt_weights(
        self, weights: dict[str, Tensor], checkpoint: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Move the rows of shared characters, and keep as many learned positions as fit.

        Raises:
            UserError: if the checkpoint is not of a recognizer, or too old to have an alphabet.
        """
        weights = super().adapt_weights(weights, checkpoint)
        own, name = self.state_dict(), "network.decoder.positions"
        if name in weights and name in own and weights[name].shape[1:] == own[name].shape[1:]:
            learned, positions = weights[name], own[name].clone()
            if len(learned) < len(positions):
                rank_zero_info(
                    f"{len(learned)} of {len(positions)} positions kept; randomly initialized: "
                    "the rest"
                )
            kept = min(len(learned), len(positions))
            positions[:kept] = learned[:kept].to(positions)
            weights[name] = positions
        return weights

    def training_losses(self, batch: SpeechBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of a batch."""
        losses, _, _ = self.losses(batch)
        self.log("train/loss_step", losses["loss"], prog_bar=True, on_step=True, on_epoch=False)
        return losses, batch.target_count()

    def on_validation_epoch_start(self) -> None:
        """Discard the words of an interrupted validation."""
        self._scored_words = []

    def validation_step(self, batch: SpeechBatch) -> dict[str, Any]:
        """Evaluate a batch like `test_step`, and collect its words to calibrate confidence."""
        found = self._evaluate(batch, self.val_losses, self.val_scores, self.decoding)
        if "words" in found:
            self._scored_words += score_words(found["words"], found["references"])
        return found

    def on_validation_epoch_end(self) -> None:
        """Calibrate the confidence of words."""
        known = gather(self._scored_words)
        if known and not self.trainer.sanity_checking:
            self.calibration = Calibration.fit(*zip(*known, strict=True))

    def test_step(self, batch: SpeechBatch) -> dict[str, Any]:
        """Evaluate a batch.

        Returns:
            What `predict_step` returns, ``references``, and ``encoded``: encodings and their mask.
        """
        return self._evaluate(batch, self.test_losses, self.test_scores, self.test_decoding)

    def predict_step(self, batch: SpeechBatch) -> dict[str, list[Any]]:
        """Recognize a batch; see `recognize`."""
        return self.recognize(batch.waveforms, batch.lengths)

    def recognize(self, waveforms: Tensor, lengths: Tensor) -> dict[str, list[Any]]:
        """Return the ``transcripts`` of recordings and, with a CTC head, their ``words``.

        Args:
            waveforms: (batch, samples), padded.
            lengths: (batch,) numbers of samples.
        """
        encoded = self.network.encode(waveforms, lengths)
        return self._read(*encoded, self.test_decoding, warn_if_cut=True)

    def losses(self, batch: SpeechBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Compute the losses of a batch, each a mean over tokens.

        Returns:
            Losses by name; encoded audio (batch, positions, hidden); its mask (batch, positions).
        """
        logits, memory, memory_mask = self.network(
            batch.waveforms, batch.lengths, batch.tokens[:, :-1]
        )
        logits, targets = logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten()
        pad = self.vocabulary.pad
        nll = F.cross_entropy(logits, targets, ignore_index=pad)
        loss = F.cross_entropy(
            logits, targets, ignore_index=pad, label_smoothing=self.label_smoothing
        )
        losses = {"nll": nll.detach()}
        if self.ctc_weight > 0:
            logs = self.network.ctc_log_probabilities(memory).transpose(0, 1)
            # On a GPU, the backward pass adds in no fixed order.
            is_ordered = torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled()
            device = "cpu" if is_ordered else logs.device
            total = F.ctc_loss(
                logs.to(device),
                batch.tokens[:, 1:].to(device),
                memory_mask.sum(1).to(device),
                (batch.token_lengths - 2).to(device),  # without start and stop
                blank=pad,
                reduction="sum",
                zero_infinity=True,  # for clips with fewer positions than characters
            ).to(memory.device)
            ctc = total / (targets != pad).sum()
            losses["ctc"] = ctc.detach()
            loss = (1 - self.ctc_weight) * loss + self.ctc_weight * ctc
        return {"loss": loss, **losses}, memory, memory_mask

    def _evaluate(
        self,
        batch: SpeechBatch,
        loss_metrics: MetricCollection,
        scores: MetricCollection,
        decoding: DecodingStrategy,
    ) -> dict[str, Any]:
        losses, memory, memory_mask = self.losses(batch)
        weight = batch.target_count()
        for name, loss in losses.items():
            loss_metrics[name].update(loss.detach(), weight)
        self.log_dict(loss_metrics, batch_size=len(batch.ids))
        is_test = scores is self.test_scores
        found = self._read(memory, memory_mask, decoding, warn_if_cut=is_test)
        references = self.spell(batch)
        scores.update(found["transcripts"], references)
        for name, score in scores.items():
            self.log(name, score, batch_size=len(references), prog_bar=name == "val/cer")
        return {"encoded": (memory, memory_mask), "references": references, **found}

    def spell(self, batch: SpeechBatch) -> list[str]:
        """Return the reference texts of a batch, spelled with the vocabulary."""
        return [self.vocabulary.decode(tokens) for tokens in batch.tokens.tolist()]

    def _read(
        self,
        memory: Tensor,
        memory_mask: Tensor,
        decoding: DecodingStrategy,
        *,
        warn_if_cut: bool,
    ) -> dict[str, list[Any]]:
        """Return the ``transcripts`` of encodings and, with a CTC head, their ``words``."""
        transcripts = self.transcribe(memory, memory_mask, decoding, warn_if_cut=warn_if_cut)
        found: dict[str, list[Any]] = {"transcripts": transcripts}
        if self.network.ctc_head is not None:
            found["words"] = self.find_words(memory, memory_mask, transcripts)
        return found

    def find_words(
        self, memory: Tensor, memory_mask: Tensor, transcripts: list[str]
    ) -> list[list[Word]]:
        """Return times and confidence of the words of transcripts; needs a CTC head."""
        dtype = next(self.network.parameters()).dtype
        with torch.autocast(memory.device.type, enabled=False):  # calibrated for what predict does
            found = find_words(
                self.network, self.vocabulary, memory.to(dtype), memory_mask, transcripts
            )
        confidence = self.calibration.confidence
        return [[w._replace(confidence=confidence(w.score)) for w in words] for words in found]

    def transcribe(
        self,
        memory: Tensor,
        memory_mask: Tensor,
        decoding: DecodingStrategy,
        *,
        warn_if_cut: bool = False,
    ) -> list[str]:
        """Decode encoded audio.

        Args:
            memory: encodings (batch, positions, hidden).
            memory_mask: (batch, positions), true on real positions.
            decoding: search that finds the texts.
            warn_if_cut: whether to warn of texts that reached the maximum length. Early in
                training, many texts do.
        """
        vocabulary = self.vocabulary
        dtype = next(self.network.parameters()).dtype
        # In the weights' type: on a CPU, casts at each token cost more than bfloat16 saves.
        with torch.autocast(memory.device.type, enabled=False):
            tokens = decoding.decode(
                self.network,
                memory.to(dtype),
                memory_mask,
                start=vocabulary.start,
                stop=vocabulary.stop,
                pad=vocabulary.pad,
            )
        cut = int((tokens != vocabulary.stop).all(1).sum())
        if cut and warn_if_cut:
            warnings.warn(
                f"{cut} transcript(s) reached the maximum of {tokens.shape[1]} tokens and are cut: "
                "raise max_tokens of the decoder or of the decoding strategy",
                stacklevel=2,
            )
        return [vocabulary.decode(row) for row in tokens.tolist()]
