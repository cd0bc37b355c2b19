"""Networks, losses and augmentations create tensors on the device of their inputs.

Fake tensors have a shape, a type and a device but no values, so the tests need no GPU. An operation
on tensors of different devices fails as it would on a GPU.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    unset_fake_temporarily,
)

from datamodules.image_dataset import ImageBatch
from datamodules.speech_dataset import SpeechBatch
from datamodules.vocabulary import CharacterVocabulary
from lightning_modules import ImageClassifier, SpeechRecognizer
from networks import (
    AudioEncoder,
    BeamSearch,
    BooleanPerceptron,
    ConformerEncoder,
    ConvNet,
    FeedForwardNetwork,
    GreedySearch,
    IntervalMLP,
    LogMelSpectrogram,
    MaclaurinAttention,
    ResidualNetwork,
    ScanAugment,
    SpecAugment,
    SpeechToText,
    TextDecoder,
    TextDecoderRecurrent,
    TextDecoderTransformer,
)
from networks.attention import AttentionKernel, KeyValues, SoftmaxAttention, maclaurin
from networks.boolean import interval_labels, sign
from networks.ctc import PrefixScores

GPU = torch.device("cuda:0")
SERIES = MaclaurinAttention(terms=3, max_logit=1.0)
TOKENS = len(CharacterVocabulary())
SMALL: dict[str, Any] = {"hidden_size": 16, "heads": 2, "mlp_size": 32}


@pytest.fixture(autouse=True)
def fake_mode() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield
    maclaurin._packing.cache_clear()  # of fake tensors
    maclaurin._coefficients.cache_clear()


class FakeableLSTM(nn.LSTM):
    """Stands in for an LSTM, which has no fake implementation, with the same shapes and devices."""

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden = x + (0 if state is None else state[0].transpose(0, 1))
        last = hidden[:, -1:].transpose(0, 1)  # (1, batch, hidden)
        return hidden @ self.get_parameter("weight_hh_l0")[: self.hidden_size], (last, last)


def fakeable_ctc_loss(
    log_probabilities: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    **settings: object,
) -> Tensor:
    """Stands in for the CTC loss, which has no fake implementation on GPUs."""
    return log_probabilities.sum() + (targets.T * target_lengths + input_lengths).sum()


def on_gpu(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Any:
    """Make a module and move its parameters and buffers to the GPU."""
    with unset_fake_temporarily():  # some constructors compute with values
        module = make(*args, **kwargs)
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, nn.Parameter(torch.empty(weight.shape, device=GPU)))
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU))
    return module


def transformer() -> TextDecoder:
    return TextDecoderTransformer(TOKENS, **SMALL)


def transformer_with_series() -> TextDecoder:
    return TextDecoderTransformer(TOKENS, **SMALL, self_attention=SERIES, cross_attention=SERIES)


def recurrent() -> TextDecoder:
    decoder = TextDecoderRecurrent(TOKENS, **SMALL, dropout=0.1)
    decoder.lstm = FakeableLSTM(16, 16, batch_first=True)
    return decoder


DECODERS = [transformer, transformer_with_series, recurrent]


def recognizer(decoder: Callable[[], TextDecoder], **settings: Any) -> SpeechRecognizer:
    def make() -> SpeechRecognizer:
        encoder = AudioEncoder(**SMALL, **settings)
        network = SpeechToText(encoder, decoder(), LogMelSpectrogram(), SpecAugment(), ctc=True)
        return SpeechRecognizer(network, CharacterVocabulary(), ctc_weight=0.3)

    task: SpeechRecognizer = on_gpu(make)
    return task


def clips() -> tuple[Tensor, Tensor]:
    return torch.rand(3, 8000, device=GPU), torch.full((3,), 5000, device=GPU)


def tokens(length: int = 7) -> Tensor:
    return torch.zeros(3, length, dtype=torch.long, device=GPU)


def memory() -> tuple[Tensor, Tensor]:
    return torch.rand(3, 11, 16, device=GPU), torch.ones(3, 11, dtype=torch.bool, device=GPU)


def images(channels: int = 1) -> Tensor:
    return torch.rand(5, channels, 28, 28, device=GPU)


def signs() -> Tensor:
    return sign(torch.randn(8, 3, device=GPU))


def predict(decoder: Callable[[], TextDecoder]) -> object:
    return recognizer(decoder).network(*clips(), tokens())


def decode(decoder: Callable[[], TextDecoder]) -> object:
    network = on_gpu(decoder).eval()
    cache = network.start(*memory(), width=2)
    first = network.step(tokens(1)[:, 0].repeat(2), cache)
    cache.select(torch.zeros(3, dtype=torch.long, device=GPU))
    second = network.step(first.argmax(-1), cache)
    return first, second, network.alignment(tokens(), *memory())


def search_greedily() -> None:
    # Which texts have ended, asked after the first step, depends on values.
    with pytest.raises(DynamicOutputShapeException, match=r"aten\.nonzero"):
        GreedySearch().decode(
            recognizer(transformer).network.eval(), *memory(), start=0, stop=1, pad=2
        )


def search_a_beam() -> None:
    # Which hypotheses have ended, asked in the first step, depends on values.
    with pytest.raises(DynamicOutputShapeException, match=r"aten\.nonzero"):
        BeamSearch(width=3).decode(
            recognizer(transformer).network.eval(), *memory(), start=0, stop=1, pad=2
        )


def score_prefixes() -> object:
    logs = torch.rand(3, 11, TOKENS, device=GPU)
    scores = PrefixScores(logs, memory()[1], blank=2, width=2, stop=1)
    before = scores.extend()
    scores.append(torch.zeros(6, dtype=torch.long, device=GPU), tokens(2).flatten())
    scores.select(torch.zeros(1, dtype=torch.long, device=GPU))
    return before, scores.extend()


def attend_causally(kernel: AttentionKernel) -> object:
    q, k, v = (torch.rand(3, 2, 200, 8, device=GPU) for _ in "qkv")  # more than one chunk
    mask = torch.ones(3, 200, dtype=torch.bool, device=GPU)
    return kernel(q, KeyValues(k, v), mask, causal=True), kernel.weights(q, k, mask)


def attend_with_padded_heads() -> Tensor:
    q, k, v = (torch.rand(3, 2, 9, 5, device=GPU, dtype=torch.bfloat16) for _ in "qkv")
    with pytest.MonkeyPatch.context() as patch:
        padded: list[torch.Size] = []
        attend = F.scaled_dot_product_attention

        def record(query: Tensor, *args: Any, **settings: Any) -> Tensor:
            padded.append(query.shape)
            return attend(query, *args, **settings)

        patch.setattr(F, "scaled_dot_product_attention", record)
        found: Tensor = SoftmaxAttention()(q, KeyValues(k, v), None, causal=False)
    assert padded == [(3, 2, 9, 8)]
    assert found.shape == q.shape
    return found


def deterministic_losses() -> object:
    places: list[torch.device] = []

    def record(*tensors: Tensor, **settings: Any) -> Tensor:
        places.extend(tensor.device for tensor in tensors)
        return fakeable_ctc_loss(*tensors, **settings)

    torch.use_deterministic_algorithms(True)
    try:
        found = recognizer_losses(record)
    finally:
        torch.use_deterministic_algorithms(False)
    assert places == [torch.device("cpu")] * 4
    return found


def recognizer_losses(ctc_loss: Callable[..., Tensor] = fakeable_ctc_loss) -> object:
    batch = SpeechBatch(
        indices=torch.arange(3, device=GPU),
        ids=("a", "b", "c"),
        waveforms=clips()[0],
        lengths=clips()[1],
        tokens=tokens(),
        token_lengths=torch.full((3,), 7, device=GPU),
        seconds=1.0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "ctc_loss", ctc_loss)
        return recognizer(transformer).losses(batch), batch.target_count()


def classifier_losses() -> object:
    names = ["a", "b", "c", "d"]
    task = on_gpu(lambda: ImageClassifier(ConvNet(), names, label_smoothing=0.1, mirror=True))
    labels = torch.zeros(5, dtype=torch.long, device=GPU)
    batch = ImageBatch(torch.arange(5, device=GPU), images(), labels, (5,))
    return task.training_losses(batch)[0], task.logits(images())


def boolean_loss() -> Tensor:
    scores = on_gpu(BooleanPerceptron, 3).preactivations(signs())
    return F.relu(1 - interval_labels(signs(), -1, 1) * scores[:, 0]).mean()


CASES: dict[str, Callable[[], object]] = {
    "LogMelSpectrogram": lambda: on_gpu(LogMelSpectrogram)(*clips()),
    "SpecAugment": lambda: SpecAugment()(
        torch.rand(3, 80, 50, device=GPU), torch.full((3,), 40, device=GPU)
    ),
    "ScanAugment": lambda: ScanAugment()(images()),
    "ConvNet": lambda: on_gpu(ConvNet)(images()),
    "FeedForwardNetwork": lambda: on_gpu(FeedForwardNetwork, dropout=0.1)(images()),
    "ResidualNetwork": lambda: on_gpu(ResidualNetwork)(images()),
    "IntervalMLP, sign": lambda: on_gpu(IntervalMLP, 3, -1, 1)(signs()),
    "IntervalMLP, relu": lambda: on_gpu(IntervalMLP, 3, -1, 1, "relu")(signs()),
    **{f"SpeechToText, {decoder.__name__}": partial(predict, decoder) for decoder in DECODERS},
    "AudioEncoder with series": lambda: recognizer(transformer, attention=SERIES).network.encode(
        *clips()
    ),
    "ConformerEncoder": lambda: on_gpu(ConformerEncoder, 80, 16, 2, 2, 32)(
        torch.rand(3, 80, 50, device=GPU), torch.full((3,), 40, device=GPU)
    ),
    "SoftmaxAttention": lambda: attend_causally(SoftmaxAttention()),
    "SoftmaxAttention, padded heads": attend_with_padded_heads,
    "MaclaurinAttention": lambda: attend_causally(SERIES),
    **{f"decoding, {decoder.__name__}": partial(decode, decoder) for decoder in DECODERS},
    "GreedySearch": search_greedily,
    "BeamSearch": search_a_beam,
    "PrefixScores": score_prefixes,
    "SpeechRecognizer's losses": recognizer_losses,
    "SpeechRecognizer's deterministic losses": deterministic_losses,
    "ImageClassifier's loss": classifier_losses,
    "BooleanClassifier's loss": boolean_loss,
}


def flatten(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from flatten(tuple(value.values()))
    elif isinstance(value, tuple):
        for item in value:
            yield from flatten(item)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_on_the_device_of_the_inputs(case: str) -> None:
    assert all(tensor.device == GPU for tensor in flatten(CASES[case]()))


def test_a_tensor_on_another_device_would_be_noticed() -> None:
    encoder = recognizer(transformer).network.encoder
    spectrograms, lengths = torch.rand(3, 80, 50, device=GPU), torch.full((3,), 40)
    with pytest.raises(RuntimeError, match=r"two different devices"):
        encoder(spectrograms, lengths)
