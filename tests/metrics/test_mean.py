import numpy as np
import pytest
import torch

from metrics import WeightedMean


def test_it_is_the_weighted_mean_and_keeps_what_is_no_number() -> None:
    values, weights = torch.tensor([1.0, 3.0, -2.0]), torch.tensor([1, 3, 5])
    mean = WeightedMean()
    for value, weight in zip(values, weights, strict=True):
        mean.update(value, weight)
    expected = np.average(values.numpy(), weights=weights.numpy())
    assert float(mean.compute()) == pytest.approx(expected)
    mean.update(torch.tensor(torch.nan), 2)
    assert mean.compute().isnan()
