"""The base class of the recognizer's encoders, and the course's encoder."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.attention import AttentionKernel, ResidualAttentionBlock
from networks.log_mel_spectrogram import length_mask


def sinusoids(length: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Return position encodings (length, channels): sines, then cosines.

    Their wavelengths are a geometric progression from 2π to 10,000 · 2π (Vaswani et al. 2017,
    section 3.5).
    """
    half = channels // 2
    rates = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=device))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class SpeechEncoder(nn.Module, ABC):
    """Base class of the encoders: strided convolutions, then the subclass's `encode`.

    Each convolution has width 3 and is followed by GELU. Its padding is masked, so that a clip's
    output does not depend on the padding of its batch.

    Args:
        bands: number of bands of the spectrograms.
        hidden_size: model width.
        strides: stride of each convolution; their product is the sub-sampling factor.
    """

    def __init__(self, bands: int, hidden_size: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.bands = bands
        self.hidden_size = hidden_size
        self.strides = tuple(strides)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(bands if i == 0 else hidden_size, hidden_size, 3, stride, padding=1)
            for i, stride in enumerate(strides)
        )

    @property
    def subsampling(self) -> int:
        """Number of frames per position."""
        return math.prod(self.strides)

    @abstractmethod
    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode sub-sampled clips (batch, positions, hidden); the mask is true on real ones."""

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch.

        Args:
            features: spectrograms (batch, bands, frames), zero after each clip's end.
            lengths: (batch,) real frames of each clip.

        Returns:
            Encodings (batch, positions, hidden) and a mask (batch, positions), true on real ones.
        """
        x = features
        for convolution, stride in zip(self.convolutions, self.strides, strict=True):
            x = F.gelu(convolution(x))
            lengths = (lengths - 1) // stride + 1
            mask = length_mask(lengths, x.shape[-1])
            # The bias fills the padding. The next convolution needs zeros there, as it finds after
            # the end of the longest clip of a batch.
            x = x * mask[:, None, :]
        return self.encode(x.transpose(1, 2), mask), mask


class AudioEncoder(SpeechEncoder):
    """Strided convolutions, sinusoidal positions and residual self-attention blocks.

    The defaults are the course's encoder, 812,800 parameters: a convolution of stride 1 and one of
    stride 2, each of width 3 and followed by GELU, then two blocks and a LayerNorm.

    Args:
        bands: number of bands of the spectrograms.
        hidden_size: model width; must be even.
        layers: number of residual attention blocks.
        heads: number of attention heads per block.
        mlp_size: hidden units of each block's MLP.
        strides: stride of each convolution; their product is the sub-sampling factor.
        dropout: dropout probability on each residual branch.
        attention: kernel of the self-attention; softmax by default.

    Raises:
        ValueError: if ``hidden_size`` is odd, or not a multiple of ``heads``.
    """

    def __init__(
        self,
        bands: int = 80,
        hidden_size: int = 200,
        layers: int = 2,
        heads: int = 2,
        mlp_size: int = 400,
        strides: Sequence[int] = (1, 2),
        dropout: float = 0.0,
        attention: AttentionKernel | None = None,
    ) -> None:
        if hidden_size % 2:
            raise ValueError(f"hidden_size {hidden_size} is odd; it must be even")
        super().__init__(bands, hidden_size, strides)
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(hidden_size, heads, mlp_size, dropout=dropout, kernel=attention)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + sinusoids(x.shape[1], self.hidden_size, x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
