"""Metrics of classes; a class that no example has is left out of them."""

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAUROC, MulticlassRecall
from torchmetrics.utilities.data import dim_zero_cat


class ClassRecalls(MulticlassRecall):
    """Each class's recall (classes,); NaN for a class that no example has."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none")

    def compute(self) -> Tensor:
        """Return the recalls."""
        recalls: Tensor = super().compute()
        hits, _, _, misses = self._final_state()
        return recalls.masked_fill(hits + misses == 0, torch.nan)


class MacroRecall(ClassRecalls):
    """Mean recall of the classes that examples have."""

    def compute(self) -> Tensor:
        """Return the mean."""
        return super().compute().nanmean()


class MacroAUROC(MulticlassAUROC):
    """Mean area under the one-vs-rest ROC curves of the classes that examples have.

    It is ``medmnist.Evaluator``'s where all classes occur, and NaN where a single one does.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override] # as in torchmetrics
        """Return the mean."""
        labels = dim_zero_cat(self.target)
        counts = torch.bincount(labels, minlength=self.num_classes)
        return super().compute()[(counts > 0) & (counts < len(labels))].mean()
