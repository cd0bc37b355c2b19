"""The Conformer encoder: masks, positions, kernels."""

import pytest
import torch
import torch.nn.functional as F

from networks import (
    ConformerEncoder,
    LogMelSpectrogram,
    MaclaurinAttention,
    SpeechToText,
    TextDecoderRecurrent,
)
from networks.attention import AttentionKernel, MultiHeadAttention
from networks.attention.multi_head import rotate
from networks.conformer import ConvolutionModule


@pytest.mark.parametrize("attention", [None, MaclaurinAttention(3)], ids=["softmax", "Maclaurin"])
@pytest.mark.parametrize("training", [False, True])
def test_a_clips_output_does_not_depend_on_its_batch(
    attention: AttentionKernel | None, training: bool
) -> None:
    """In training mode too: all normalization is within a position."""
    torch.manual_seed(0)
    encoder = ConformerEncoder(20, 16, 2, 2, 32, kernel_size=7, dropout=0.0, attention=attention)
    encoder.train(training)
    lengths = torch.tensor([90, 61, 5, 1])
    features = torch.randn(4, 20, 90) * (torch.arange(90) < lengths[:, None])[:, None]
    together, mask = encoder(features, lengths)
    assert mask.sum(1).tolist() == [23, 16, 2, 1]
    for i, length in enumerate(lengths):
        alone, _ = encoder(features[i : i + 1, :, :length], lengths[i : i + 1])
        found = together[i, : alone.shape[1]]
        torch.testing.assert_close(found, alone[0], rtol=1e-4, atol=1e-5)


def test_rotated_products_depend_on_the_distance_only() -> None:
    query, key = (torch.randn(1, 1, 1, 8, dtype=torch.float64) for _ in range(2))
    logits = rotate(query.expand(1, 1, 12, 8)) @ rotate(key.expand(1, 1, 12, 8)).transpose(2, 3)
    for distance in range(-11, 12):
        diagonal = logits[0, 0].diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits[0, 0, 3, 3], (query * key).sum(), rtol=1e-6, atol=1e-6)
    # As complex numbers: the product with e^{i·position·rate} of each pair.
    rates = 10_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    pairs = torch.complex(query[0, 0, 0, :4], query[0, 0, 0, 4:])
    turned = pairs * torch.exp(5j * rates)
    expected = torch.cat((turned.real, turned.imag))
    found = rotate(query.expand(1, 1, 12, 8))[0, 0, 5]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_rotation_changes_attention_and_an_odd_head_size_is_refused() -> None:
    torch.manual_seed(0)
    plain = MultiHeadAttention(8, 2)
    rotary = MultiHeadAttention(8, 2, rotary=True)
    rotary.load_state_dict(plain.state_dict())
    x = torch.randn(1, 6, 8)
    shuffled = x[:, [0, 2, 1, 3, 4, 5]]
    last = plain(x)[:, 5] - plain(shuffled)[:, 5]
    assert last.abs().max() < 1e-6  # the order of the others does not count
    assert (rotary(x)[:, 5] - rotary(shuffled)[:, 5]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="head size 3 is odd"):
        MultiHeadAttention(6, 2, rotary=True)
    with pytest.raises(ValueError, match="kernel_size 4 is even"):
        ConformerEncoder(kernel_size=4)


def test_the_convolution_module_is_that_of_the_paper() -> None:
    """With an explicit sum over the kernel, in float64."""
    torch.manual_seed(0)
    module = ConvolutionModule(6, 5).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    normed = F.layer_norm(x, (6,), module.norm.weight, module.norm.bias)
    value, gate = (normed @ module.gated.weight.T + module.gated.bias).chunk(2, -1)
    gated = value * gate.sigmoid() * mask[:, :, None]
    assert module.depthwise.bias is not None
    summed = torch.zeros_like(x) + module.depthwise.bias
    for t in range(9):
        for k in range(5):
            if 0 <= t + k - 2 < 9:
                summed[:, t] += module.depthwise.weight[:, 0, k] * gated[:, t + k - 2]
    norm = module.depthwise_norm
    hidden = F.layer_norm(summed, (6,), norm.weight, norm.bias)
    expected = (hidden * hidden.sigmoid()) @ module.output.weight.T + module.output.bias
    torch.testing.assert_close(module(x, mask), expected)


def test_every_weight_of_the_recognizer_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = SpeechToText(
        ConformerEncoder(hidden_size=16, layers=2, heads=2, mlp_size=32),
        TextDecoderRecurrent(9, 16, 2, 32),
        LogMelSpectrogram(),
        ctc=True,
    )
    memory, mask = network.encode(torch.randn(2, 6000), torch.tensor([6000, 4000]))
    logits = network.decoder(torch.randint(0, 9, (2, 4)), memory, mask)
    (logits.square().sum() + network.ctc_log_probabilities(memory).square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
