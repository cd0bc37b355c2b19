"""Character language models: training, and loading one for beam search."""

import math

import torch.nn.functional as F
from torch import Tensor

from datamodules.transcripts import TextBatch
from datamodules.vocabulary import CharacterVocabulary
from engine import find_checkpoint, read_checkpoint
from errors import UserError
from lightning_modules.character_task import CharacterTask
from metrics import WeightedMean
from networks import CharacterLanguageModel


class LanguageModel(CharacterTask):
    """Train a network to predict the next character of a transcript.

    All stages log ``loss``, the cross-entropy per token in nats; validation and test also log
    ``bits_per_character``, the same in bits.

    Args:
        network: network that predicts the next token.
        vocabulary: vocabulary of the transcripts; filled from the data module.
    """

    network: CharacterLanguageModel
    batch_type = TextBatch
    mixed_precision = True

    def __init__(self, network: CharacterLanguageModel, vocabulary: CharacterVocabulary) -> None:
        super().__init__(network, vocabulary)
        self.val_loss, self.test_loss = WeightedMean(), WeightedMean()

    def training_losses(self, batch: TextBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the mean loss over tokens."""
        return {"loss": self.loss(batch, "mean")}, batch.target_count()

    def loss(self, batch: TextBatch, reduction: str) -> Tensor:
        """Return the cross-entropy in nats, of the whole batch or, with ``none``, per token."""
        logits = self.network(batch.tokens[:, :-1]).float().flatten(0, 1)
        targets, pad = batch.tokens[:, 1:], self.vocabulary.pad
        # Flat, because the loss of several dimensions is not deterministic on a GPU.
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=pad, reduction=reduction)
        return loss.view_as(targets) if reduction == "none" else loss

    def validation_step(self, batch: TextBatch) -> None:
        """Evaluate a batch."""
        self._evaluate("val", self.val_loss, batch)

    def test_step(self, batch: TextBatch) -> None:
        """Evaluate a batch."""
        self._evaluate("test", self.test_loss, batch)

    def predict_step(self, batch: TextBatch) -> Tensor:
        """Return each text's bits per character, the stop token included: (batch,)."""
        return self.loss(batch, "none").sum(1) / (batch.token_lengths - 1) / math.log(2)

    def _evaluate(self, stage: str, mean: WeightedMean, batch: TextBatch) -> None:
        mean.update(self.loss(batch, "mean"), batch.target_count())
        self.log(f"{stage}/loss", mean, batch_size=len(batch.ids))

    def on_validation_epoch_end(self) -> None:
        """Log the loss in bits."""
        self.log("val/bits_per_character", self.val_loss.compute() / math.log(2))

    def on_test_epoch_end(self) -> None:
        """Log the loss in bits."""
        self.log("test/bits_per_character", self.test_loss.compute() / math.log(2))


class TrainedLanguageModel(CharacterLanguageModel):
    """Language model with the weights of a run, for `BeamSearch`.

    Args:
        run: run directory, of which the best checkpoint is taken, or a checkpoint.

    Attributes:
        alphabet: characters that the model was trained with.

    Raises:
        UserError: if there is no checkpoint of a language model.
    """

    def __init__(self, run: str) -> None:
        path = find_checkpoint(run)
        checkpoint = read_checkpoint(path)
        prefix = "network."
        weights = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        if "lstm.weight_ih_l0" not in weights or "alphabet" not in checkpoint:
            raise UserError(f"{path} is not a checkpoint of a language model (lm_character.yaml)")
        size, hidden_size = weights["embedding.weight"].shape
        layers = sum(name.startswith("lstm.weight_ih_l") for name in weights)
        super().__init__(size, hidden_size, layers)
        self.load_state_dict(weights)
        self.requires_grad_(False)
        self.alphabet: str = checkpoint["alphabet"]
