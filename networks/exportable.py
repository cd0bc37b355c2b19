"""The recognizer's network for other runtimes: tensors in, tensors out, explicit caches."""

import copy
import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from networks.attention import KeyValues, SoftmaxAttention
from networks.language_model import CharacterLanguageModel
from networks.speech_to_text import SpeechToText
from networks.text_decoder import (
    TextDecoder,
    TextDecoderRecurrent,
    TextDecoderTransformer,
)


class ConvolutionalMel(nn.Module):
    """A mel spectrogram whose Fourier transform is a convolution with sines and cosines.

    Few runtimes have a short-time Fourier transform; all have convolutions.

    Args:
        mel: spectrogram to reproduce.
    """

    basis: Tensor
    bands: Tensor

    def __init__(self, mel: MelSpectrogram) -> None:
        super().__init__()
        samples = torch.arange(mel.n_fft, dtype=torch.float64)
        frequencies = torch.arange(mel.n_fft // 2 + 1, dtype=torch.float64)
        angles = 2 * math.pi / mel.n_fft * frequencies[:, None] * samples
        basis = torch.cat((angles.cos(), angles.sin())) * mel.spectrogram.window.double()
        self.stride = mel.hop_length
        self.padding = mel.n_fft // 2
        self.register_buffer("basis", basis[:, None].float())  # (2 · frequencies, 1, n_fft)
        self.register_buffer("bands", mel.mel_scale.fb.T.contiguous())  # (bands, frequencies)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) → (batch, bands, frames)."""
        spectrum = F.conv1d(
            waveforms[:, None], self.basis, stride=self.stride, padding=self.padding
        )
        real, imaginary = spectrum.chunk(2, dim=1)
        return self.bands @ (real.square() + imaginary.square())


class ExportableEncoder(nn.Module):
    """Encoder that returns everything decoding needs.

    Args:
        network: trained network.
        convolutional: whether to replace the network's spectrogram by a `ConvolutionalMel`, in a
            copy of the network.
    """

    def __init__(self, network: SpeechToText, *, convolutional: bool) -> None:
        super().__init__()
        if convolutional:
            network = copy.deepcopy(network)
            mel = network.features.mel
            network.features.mel = ConvolutionalMel(mel)
        self.network = network
        self.outputs: tuple[str, ...] = ("mask", "keys", "values")
        if network.ctc_head is not None:
            self.outputs += ("ctc",)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Encode a batch.

        Args:
            waveforms: (batch, samples) in [-1, 1], zero after each clip's end.
            lengths: (batch,) real samples of each clip.

        Returns:
            Mask (batch, positions), true on real positions; keys and values of the decoder's
            cross-attention (batch, heads, positions, head size); with a CTC head, its
            log-probabilities (batch, positions, vocabulary).
        """
        memory, mask = self.network.encode(waveforms, lengths)
        attention = self.network.decoder.cross_attention.attention
        outputs = (mask, *attention.project(memory))
        if self.network.ctc_head is None:
            return outputs
        return *outputs, self.network.ctc_log_probabilities(memory)


class ExportableStep(nn.Module, ABC):
    """One step of a decoder whose state is an argument.

    Args:
        decoder: trained decoder with softmax attention.
    """

    states: tuple[str, ...]
    """Names of the tensors of the state; the first dimension of each is the batch."""

    def __init__(self, decoder: TextDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    @abstractmethod
    def start(self) -> list[Tensor]:
        """Return the state of one text before its first token."""

    @abstractmethod
    def read(self, tokens: Tensor, position: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return what was read (batch, 1, hidden), and the new state."""

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        """Read the next token of each text.

        Args:
            tokens: (batch,).
            position: (1,) number of tokens read before.
            keys: (batch, heads, positions, head size), from `ExportableEncoder`.
            values: values of the same shape.
            mask: (batch, positions).
            state: tensors named by ``states``.

        Returns:
            Log-probabilities (batch, vocabulary) of the tokens after it, and the new state.
        """
        hidden, *state = self.read(tokens[:, None], position, *state)  # type: ignore[assignment]
        kernel = self.decoder.cross_attention.attention.kernel
        summary = kernel.summarize(KeyValues(keys, values), mask)
        logits = self.decoder.predict(hidden, summary)[:, 0]
        return logits.log_softmax(-1), *state


def step_lstm(
    lstm: nn.LSTM, layer: int, x: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the state (batch, hidden) of a layer after its next input.

    As an operator, LSTM is exported with shapes that onnxruntime complains about.
    """
    weights: dict[str, Tensor] = dict(lstm.named_parameters())
    gates = F.linear(x, weights[f"weight_ih_l{layer}"], weights[f"bias_ih_l{layer}"])
    gates = gates + F.linear(hidden, weights[f"weight_hh_l{layer}"], weights[f"bias_hh_l{layer}"])
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=1)
    cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
    return output_gate.sigmoid() * cell.tanh(), cell


class RecurrentStep(ExportableStep):
    """A step of `TextDecoderRecurrent`; its state is that of the LSTM, (batch, hidden) each."""

    states = ("hidden", "cell")
    decoder: TextDecoderRecurrent

    def start(self) -> list[Tensor]:
        return [torch.zeros(1, self.decoder.hidden_size) for _ in self.states]

    def read(self, tokens: Tensor, position: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = self.decoder.embedding_norm(self.decoder.embedding(tokens[:, 0]))
        hidden, cell = step_lstm(self.decoder.lstm, 0, x, *state)
        return hidden[:, None], hidden, cell


class TransformerStep(ExportableStep):
    """A step of `TextDecoderTransformer`.

    Its state is the keys and values so far, (batch, heads, tokens, head size) each.
    """

    states = ("text_keys", "text_values")
    decoder: TextDecoderTransformer

    def start(self) -> list[Tensor]:
        attention = self.decoder.self_attention
        size = self.decoder.hidden_size // attention.heads
        return [torch.zeros(1, attention.heads, 0, size) for _ in self.states]

    def read(self, tokens: Tensor, position: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = self.decoder.embedding(tokens) + self.decoder.positions.index_select(0, position)
        attention = self.decoder.self_attention
        keys, values = (
            torch.cat((old, new), dim=2)
            for old, new in zip(state, attention.project(x), strict=True)
        )
        summary = attention.kernel.summarize(KeyValues(keys, values), None)
        return x + attention.read(x, summary), keys, values


def make_step(decoder: TextDecoder) -> ExportableStep:
    """Return a decoder's step.

    Raises:
        ValueError: if the decoder is of another type, or its attention is not softmax.
    """
    steps = {TextDecoderRecurrent: RecurrentStep, TextDecoderTransformer: TransformerStep}
    if type(decoder) not in steps:
        raise ValueError(f"the decoder {type(decoder).__name__} cannot be exported")
    for module in decoder.modules():
        kernel = getattr(module, "kernel", None)
        if kernel is not None and not isinstance(kernel, SoftmaxAttention):
            raise ValueError(
                f"the decoder's {type(kernel).__name__} cannot be exported: its sums would have to "
                "be an explicit cache"
            )
    return steps[type(decoder)](decoder)


class LanguageModelStep(nn.Module):
    """One step of a language model whose state is an argument.

    Args:
        model: trained language model.

    Attributes:
        states: names of the hidden and the cell state of each layer, (batch, hidden) each.
    """

    def __init__(self, model: CharacterLanguageModel) -> None:
        super().__init__()
        self.model = model
        layers = range(model.lstm.num_layers)
        self.states = tuple(f"{kind}_{layer}" for layer in layers for kind in ("hidden", "cell"))

    def start(self) -> list[Tensor]:
        """Return the state of one text before its first token."""
        return [torch.zeros(1, self.model.lstm.hidden_size) for _ in self.states]

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the log-probabilities after the tokens (batch,), and the new state."""
        x = self.model.embedding(tokens)
        new: list[Tensor] = []
        for layer in range(self.model.lstm.num_layers):
            x, cell = step_lstm(self.model.lstm, layer, x, *state[2 * layer : 2 * layer + 2])
            new += [x, cell]
        return self.model.output(x).log_softmax(-1), *new
