"""Each test names the section of docs/maclaurin_attention.md that it checks."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from networks.attention import (
    MaclaurinAttention,
    MaclaurinState,
    count_features,
    maclaurin_attention,
    maclaurin_attention_naive,
    maclaurin_features,
    maclaurin_step,
    truncated_exp,
    truncation_error,
)


def inputs(
    queries: int,
    keys: int,
    size: int = 5,
    value_size: int = 4,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((queries, size), (keys, size), (keys, value_size))
    return tuple(
        (scale * torch.randn(2, 3, *shape, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in shapes
    )  # type: ignore[return-value]


def padding(keys: int) -> Tensor:
    """Return a padding mask of two rows, one without and one with over half padding."""
    return torch.arange(keys) >= torch.tensor([[keys], [keys - keys // 2 - 1]])


def definition(q: Tensor, k: Tensor, v: Tensor, terms: int, hidden: Tensor, causal: bool) -> Tensor:
    """Compute attention query by query, key by key and term by term."""
    output = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen = [j for j in range(k.shape[2]) if not hidden[b, j] and (not causal or j <= i)]
        logits = [q[b, h, i] @ k[b, h, j] / math.sqrt(q.shape[-1]) for j in seen]
        weights = [sum(t**n / math.factorial(n) for n in range(terms)) for t in logits]
        output[b, h, i] = sum(
            w / sum(weights) * v[b, h, j] for w, j in zip(weights, seen, strict=True)
        )
    return output


def assert_same(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...], tolerance: float) -> None:
    """Compare values and all gradients, each relative to its maximum."""
    torch.manual_seed(1)
    direction = torch.randn_like(ours)
    pairs = [(ours, theirs)]
    gradients = (torch.autograd.grad(x, inputs, direction) for x in (ours, theirs))
    pairs += zip(*gradients, strict=True)
    for a, b in pairs:
        # With a single key, the gradient of the queries is 0.
        assert (a - b).abs().max() <= tolerance * max(b.abs().max().item(), 0.1)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_section_2_products_of_features_are_the_truncated_series(size: int, terms: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 7, size, dtype=torch.float64)
    features = maclaurin_features(q, terms)
    assert features.shape == (7, count_features(size, terms))
    products = (features * maclaurin_features(k, terms)).sum(-1)
    t = (q * k).sum(-1)
    expected = sum(t**n / math.factorial(n) for n in range(terms))
    torch.testing.assert_close(products, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(truncated_exp(t, terms), expected, rtol=1e-12, atol=1e-12)


def test_section_2_features_of_three_terms_are_the_packed_ones() -> None:
    x = torch.tensor([2.0, 3.0], dtype=torch.float64)
    root = math.sqrt(2)
    expected = torch.tensor([1, 2, 3, 4 / root, 6, 9 / root], dtype=torch.float64)
    torch.testing.assert_close(maclaurin_features(x, 3), expected)


def test_section_2_without_cross_terms_the_series_is_another() -> None:
    """A known wrong answer: 2D + 1 features, the squares without the products of two variables."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 7, 5, dtype=torch.float64)
    left, right = maclaurin_features(q, 3), maclaurin_features(k, 3)
    pairs = list(itertools.combinations_with_replacement(range(5), 2))
    squares = torch.tensor([True] * 6 + [i == j for i, j in pairs])
    assert squares.sum() == 2 * 5 + 1
    wrong = (left * right)[:, squares].sum(-1)
    torch.testing.assert_close(wrong, 1 + (q * k).sum(-1) + (q**2 * k**2).sum(-1) / 2)
    missing = sum(q[:, i] * q[:, j] * k[:, i] * k[:, j] for i, j in pairs if i != j)
    torch.testing.assert_close(truncated_exp((q * k).sum(-1), 3), wrong + missing)


@pytest.mark.parametrize(
    ("size", "terms", "features"),
    [(16, 3, 153), (16, 4, 969), (32, 3, 561), (64, 3, 2145), (100, 3, 5151)],
)
def test_section_2_numbers_of_features(size: int, terms: int, features: int) -> None:
    assert count_features(size, terms) == features
    assert maclaurin_features(torch.zeros(1, size), terms).shape == (1, features)
    if terms == 3:
        assert features == (size + 1) * (size + 2) // 2


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_section_3_the_naive_form_is_the_definition(causal: bool) -> None:
    q, k, v = inputs(5, 5)
    hidden = padding(5)
    ours = maclaurin_attention_naive(q, k, v, 3, causal=causal, key_padding_mask=hidden)
    assert_same(ours, definition(q, k, v, 3, hidden, causal), (q, k, v), 1e-12)


def test_section_3_the_matrix_form() -> None:
    """Z = Diag(Φ(Q)Φ(K)ᵀ1)⁻¹ Φ(Q)(Φ(K)ᵀV), literally."""
    q, k, v = inputs(6, 9)
    left, right = (maclaurin_features(x / 5**0.25, 3) for x in (q, k))
    normalizer = (left @ right.transpose(-1, -2) @ torch.ones(9, 1, dtype=q.dtype)).squeeze(-1)
    expected = torch.diag_embed(1 / normalizer) @ left @ (right.transpose(-1, -2) @ v)
    assert_same(maclaurin_attention(q, k, v, 3), expected, (q, k, v), 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("length", "size", "terms", "chunk"),
    [(1, 4, 3, None), (37, 5, 3, 8), (200, 4, 4, 16), (150, 3, 5, 1), (1400, 16, 3, None)],
)
def test_section_4_linear_forms_equal_the_naive_one(
    length: int,
    size: int,
    terms: int,
    chunk: int | None,
    causal: bool,
    masked: bool,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if chunk is not None:  # several blocks of 64 positions
        monkeypatch.setattr("networks.attention.maclaurin.BLOCK_ELEMENTS", 1)
    scale = 1.0 if terms % 2 else 0.5  # with an even number, sums of weights may be near 0
    q, k, v = inputs(length, length, size, scale=scale, dtype=dtype)
    settings = {"causal": causal, "key_padding_mask": padding(length) if masked else None}
    ours = maclaurin_attention(q, k, v, terms, chunk=chunk, **settings)  # type: ignore[arg-type]
    theirs = maclaurin_attention_naive(q, k, v, terms, **settings)  # type: ignore[arg-type]
    assert ours.dtype == dtype
    assert_same(ours, theirs, (q, k, v), tolerance)


def multiplications(function: Callable[[], object]) -> int:
    """Count the multiplications of matrix products."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


def test_sections_1_4_and_7_multiplications_of_the_forms() -> None:
    length, size, value_size, terms = 512, 5, 7, 3
    m = count_features(size, terms)
    q, k = torch.randn(2, 1, 1, length, size)
    v = torch.randn(1, 1, length, value_size)

    def naive(n: int) -> int:
        a, b, c = (x[..., :n, :] for x in (q, k, v))
        return multiplications(lambda: maclaurin_attention_naive(a, b, c, terms))

    def linear(n: int, *, causal: bool = False) -> int:
        a, b, c = (x[..., :n, :] for x in (q, k, v))
        return multiplications(lambda: maclaurin_attention(a, b, c, terms, causal=causal, chunk=64))

    assert naive(length) == length**2 * (size + value_size + 1)
    assert linear(length) == 2 * length * m * (value_size + 1)
    assert linear(length) == 2 * linear(length // 2)
    each = 64 * (size + value_size + 1) + 2 * m * (value_size + 1)
    assert linear(length, causal=True) == length * each
    crossover = 2 * m * (value_size + 1) / (size + value_size + 1)
    below, above = math.floor(crossover), math.ceil(crossover + 1e-9)
    assert naive(below) <= linear(below)
    assert naive(above) >= linear(above)
    equal = torch.randn(1, 1, 300, 6)
    softmax = multiplications(lambda: torch.softmax(equal @ equal.transpose(-1, -2), -1) @ equal)
    assert softmax == 300**2 * (6 + 6)


def test_section_4_numbers_of_queries_and_keys_may_differ() -> None:
    q, k, v = inputs(7, 23)
    hidden = padding(23)
    ours = maclaurin_attention(q, k, v, 3, key_padding_mask=hidden, chunk=4)
    theirs = maclaurin_attention_naive(q, k, v, 3, key_padding_mask=hidden)
    assert_same(ours, theirs, (q, k, v), 1e-10)
    with pytest.raises(ValueError, match="as many queries as keys, not 7 and 23"):
        maclaurin_attention(q, k, v, 3, causal=True)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_section_4_gradients_equal_finite_differences(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 3, dtype=torch.float64, requires_grad=True) for _ in "qkv")
    assert torch.autograd.gradcheck(
        lambda q, k, v: maclaurin_attention(q, k, v, 3, causal=causal, chunk=2), (q, k, v)
    )


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_section_4_features_of_the_whole_sequence_are_never_stored(causal: bool) -> None:
    """Tensors saved for the backward pass are smaller than the features of all positions."""
    length, size = 8192, 16
    q, k, v = (torch.randn(1, 1, length, size, requires_grad=True) for _ in "qkv")
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maclaurin_attention(q, k, v, 3, causal=causal).sum()
    features = 4 * length * count_features(size, 3)  # bytes
    assert sum(kept.values()) < features / 2


@pytest.mark.parametrize("terms", [3, 5])
def test_section_5_steps_equal_causal_attention(terms: int) -> None:
    q, k, v = inputs(11, 11)
    expected = maclaurin_attention_naive(q, k, v, terms, causal=True)
    state = MaclaurinState()
    steps = []
    for i in range(11):
        here = slice(i, i + 1)
        steps.append(maclaurin_step(q[:, :, here], k[:, :, here], v[:, :, here], state, terms))
        assert state.sums is not None
        assert state.sums.shape == (2, 3, count_features(5, terms), 5)  # at every step
    assert_same(torch.cat(steps, dim=-2), expected, (q, k, v), 1e-10)


def test_section_6_weights_are_positive_for_odd_terms_and_may_not_be_for_even_ones() -> None:
    t = torch.linspace(-30, 30, 10_001, dtype=torch.float64)
    for terms in (1, 3, 5, 7):
        assert (truncated_exp(t, terms) > 0).all()
    for terms in (2, 4, 6):
        assert (truncated_exp(t, terms) < 0).any()
    assert truncated_exp(t, 3).min() == pytest.approx(0.5, abs=1e-4)  # at t = −1


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 8])
def test_section_6_the_error_stays_below_its_bound(terms: int) -> None:
    t = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    error = (t.exp() - truncated_exp(t, terms)).abs()
    assert (error <= truncation_error(t, terms) * (1 + 1e-12) + 1e-15).all()


@pytest.mark.parametrize(("terms", "max_logit"), [(3, 0.5), (3, 1.0), (4, 1.0), (5, 2.0)])
def test_section_6_bounded_logits_keep_the_distance_to_softmax(
    terms: int, max_logit: float
) -> None:
    q, k, _ = inputs(20, 20, scale=3.0)
    kernel = MaclaurinAttention(terms, max_logit)
    weights = kernel.weights(q, k, None)
    short_q, short_k = kernel._bound(q), kernel._bound(k)
    logits = short_q @ short_k.transpose(-1, -2) / math.sqrt(5)
    assert logits.abs().max() <= max_logit * (1 + 1e-6)
    factor = max_logit**terms / math.factorial(terms) * math.exp(max_logit)
    ratio = weights / logits.softmax(-1)
    # Each weight and their sum are approximated within 1 ± factor.
    assert ratio.max() <= (1 + factor) / (1 - min(factor, 0.999))
    assert ratio.min() >= (1 - factor) / (1 + factor)
    small = 0.1 * torch.randn_like(q)  # within the bound: unchanged
    assert (kernel._bound(small) == small).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("terms", "max_logit"), [(2, 0.999), (4, 1.59)])
def test_section_6_weights_of_even_terms_are_positive_in_half_precision(
    terms: int, max_logit: float, dtype: torch.dtype
) -> None:
    """Opposite vectors have the smallest logits that the bound allows."""
    kernel = MaclaurinAttention(terms, max_logit)
    for size in (5, 8, 36, 64, 100):
        q = (3 * torch.randn(4000, size)).to(dtype)
        logits = -kernel._bound(q).double().square().sum(-1) / math.sqrt(size)
        assert logits.min() >= -max_logit * (1 + 1e-6)
        assert (truncated_exp(logits, terms) > 0).all()


def test_more_terms_come_closer_to_softmax() -> None:
    q, k, v = inputs(20, 20)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    errors = [
        (maclaurin_attention(q, k, v, terms, causal=True) - exact).abs().max().item()
        for terms in (3, 5, 7, 9, 11)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("autocast", [False, True])
def test_sums_are_float32_for_any_dtype_of_the_inputs(causal: bool, autocast: bool) -> None:
    q, k, v = (x.detach() for x in inputs(600, 600, 8, dtype=torch.bfloat16))
    exact = maclaurin_attention_naive(q.double(), k.double(), v.double(), 3, causal=causal)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = maclaurin_attention(q, k, v, 3, causal=causal, chunk=64)
    assert ours.dtype == torch.bfloat16
    # Within the rounding of the output.
    assert ((ours.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_queries_that_see_nothing_get_zeros_and_finite_gradients(causal: bool) -> None:
    q, k, v = inputs(9, 9)
    hidden = torch.ones(2, 9, dtype=torch.bool)
    hidden[1, 4:] = False
    output = maclaurin_attention(q, k, v, 3, causal=causal, key_padding_mask=hidden, chunk=2)
    assert (output[0] == 0).all()
    assert (output[1, :, 4:] != 0).all()
    for gradient in torch.autograd.grad(output.sum(), (q, k, v)):
        assert gradient.isfinite().all()


def test_a_cache_made_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        maclaurin_features(torch.randn(2, 11), 3)
    x = torch.randn(2, 11, requires_grad=True)
    maclaurin_features(x, 3).sum().backward()
    assert x.grad is not None


def test_attention_needs_a_term() -> None:
    with pytest.raises(ValueError, match="terms 0 is less than 1"):
        maclaurin_attention(*inputs(2, 2), 0)
