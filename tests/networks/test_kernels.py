"""Attention kernels through their interface."""

import pytest
import torch

from networks.attention import AttentionKernel, KeyValues, MaclaurinAttention, SoftmaxAttention
from tests.networks.test_maclaurin import inputs, padding


@pytest.mark.parametrize("kernel", [SoftmaxAttention(), MaclaurinAttention(5, max_logit=2.0)])
def test_weights_whole_sequences_and_steps_agree(kernel: AttentionKernel) -> None:
    q, k, v = (x.detach() for x in inputs(7, 7, 4, 4))
    mask = ~padding(7)
    whole = kernel(q, KeyValues(k, v), mask, causal=False)
    torch.testing.assert_close(kernel.weights(q, k, mask) @ v, whole)
    causal = kernel(q, KeyValues(k, v), None, causal=True)
    state = kernel.start(7)
    for i in range(7):
        here = slice(i, i + 1)
        step = kernel.step(q[:, :, here], KeyValues(k[:, :, here], v[:, :, here]), state)
        torch.testing.assert_close(step, causal[:, :, here])
    # Causal attention to the real keys at the start equals that of the shorter sequence.
    masked = kernel(q, KeyValues(k, v), mask, causal=True)
    torch.testing.assert_close(masked[:, :, :3], causal[:, :, :3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"terms": 0}, "terms 0 is less than 1"),
        ({"terms": 2}, "with 2 terms, an even number, weights can be negative"),
        ({"terms": 4, "max_logit": 2.0}, "use an odd number of terms or a smaller max_logit"),
        ({"max_logit": 0.0}, r"max_logit 0\.0 is not above 0"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaclaurinAttention(**settings)  # type: ignore[arg-type]
