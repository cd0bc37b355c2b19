"""Conformer encoder (Gulati et al. 2020)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from networks.attention import AttentionKernel, MultiHeadAttention
from networks.audio_encoder import SpeechEncoder
from networks.dropout import Dropout


class ConformerEncoder(SpeechEncoder):
    """Strided convolutions, then Conformer blocks with rotary positions.

    Positions enter through rotations of queries and keys (see `MultiHeadAttention`), so the logits
    depend on distances only, with any attention kernel.

    Args:
        bands: number of bands of the spectrograms.
        hidden_size: model width.
        layers: number of Conformer blocks.
        heads: number of attention heads per block; the head size must be even.
        mlp_size: hidden units of each feed-forward module.
        kernel_size: width of the depthwise convolutions, in positions; odd.
        strides: stride of each convolution before the blocks.
        dropout: dropout probability on the input and on each residual branch. There is none
            inside the feed-forward modules.
        attention: kernel of the self-attention; softmax by default.

    Raises:
        ValueError: if ``kernel_size`` is even, or ``hidden_size`` does not fit ``heads``.
    """

    def __init__(
        self,
        bands: int = 80,
        hidden_size: int = 144,
        layers: int = 8,
        heads: int = 4,
        mlp_size: int = 576,
        kernel_size: int = 15,
        strides: Sequence[int] = (2, 2),
        dropout: float = 0.1,
        attention: AttentionKernel | None = None,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even; it must be odd")
        super().__init__(bands, hidden_size, strides)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            ConformerBlock(hidden_size, heads, mlp_size, kernel_size, dropout, attention)
            for _ in range(layers)
        )

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class ConformerBlock(nn.Module):
    """Half-step feed-forward, self-attention, convolution, half-step feed-forward.

    All four are residual branches that start with a LayerNorm; a LayerNorm ends the block.
    Arguments as `ConformerEncoder`'s.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        mlp_size: int,
        kernel_size: int,
        dropout: float,
        attention: AttentionKernel | None,
    ) -> None:
        super().__init__()
        self.first_mlp = _make_mlp(hidden_size, mlp_size)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = MultiHeadAttention(hidden_size, heads, kernel=attention, rotary=True)
        self.convolution = ConvolutionModule(hidden_size, kernel_size)
        self.second_mlp = _make_mlp(hidden_size, mlp_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode (batch, positions, hidden); the mask is true on real positions."""
        x = x + 0.5 * self.dropout(self.first_mlp(x))
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        x = x + self.dropout(self.convolution(x, mask))
        x = x + 0.5 * self.dropout(self.second_mlp(x))
        return self.norm(x)


class ConvolutionModule(nn.Module):
    """LayerNorm, gated linear unit, depthwise convolution, LayerNorm, SiLU, linear layer.

    The second normalization is over channels, not batch norm as in Gulati et al., so a clip's
    output never depends on its batch, not even in training.

    Args:
        hidden_size: model width.
        kernel_size: width of the depthwise convolution; odd.
    """

    def __init__(self, hidden_size: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.gated = nn.Linear(hidden_size, 2 * hidden_size)
        self.depthwise = nn.Conv1d(
            hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size
        )
        self.depthwise_norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Convolve (batch, positions, hidden); padding counts as zeros."""
        x = F.glu(self.gated(self.norm(x)), dim=-1) * mask[:, :, None]
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.output(F.silu(self.depthwise_norm(x)))


def _make_mlp(hidden_size: int, mlp_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(hidden_size),
        nn.Linear(hidden_size, mlp_size),
        nn.SiLU(),
        nn.Linear(mlp_size, hidden_size),
    )
