"""A training step of the recognizers against other libraries' networks of the same size.

    python -m benchmarks.recognizers

16 clips of 650 frames (6.5 s), texts of 100 tokens, float32, no dropout: forward, loss and
backward. Hugging Face's network has an explicit softmax only.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.models import Conformer
from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

from benchmarks.harness import OURS, Section, report, take_turns
from networks import AudioEncoder, ConformerEncoder, TextDecoderTransformer

BATCH, FRAMES, TOKENS, SIZE = 16, 650, 100, 35


def count(*modules: nn.Module) -> str:
    """Return the number of parameters in words."""
    total = sum(p.numel() for module in modules for p in module.parameters())
    return f"{total / 1e6:.2f} million parameters"


def transformers() -> tuple[dict[str, Callable[[], object]], str]:
    """Return ours and Hugging Face's recognizer with a Transformer decoder, and their sizes."""
    encoder, decoder = AudioEncoder(), TextDecoderTransformer(SIZE, max_tokens=200)
    config = Speech2TextConfig(
        vocab_size=SIZE,
        d_model=200,
        encoder_layers=2,
        encoder_ffn_dim=400,
        encoder_attention_heads=2,
        decoder_layers=1,
        decoder_ffn_dim=400,
        decoder_attention_heads=2,
        num_conv_layers=1,  # sub-sampling 2, as ours
        conv_kernel_sizes=(5,),
        conv_channels=400,
        input_feat_per_channel=80,
        max_source_positions=FRAMES,
        max_target_positions=200,
        pad_token_id=2,
        activation_function="gelu",
        dropout=0.0,
        use_cache=False,
    )
    peer = Speech2TextForConditionalGeneration(config)
    features, lengths = torch.randn(BATCH, 80, FRAMES), torch.full((BATCH,), FRAMES)
    tokens = torch.randint(3, SIZE, (BATCH, TOKENS))
    features_last = features.transpose(1, 2).contiguous()

    def ours() -> None:
        memory, mask = encoder(features, lengths)
        logits = decoder(tokens[:, :-1], memory, mask)
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()

    def theirs() -> None:
        logits = peer(input_features=features_last, decoder_input_ids=tokens[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()

    sizes = f"Transformer: {count(encoder, decoder)}, Hugging Face {count(peer)}"
    return {OURS: ours, "Hugging Face Speech2Text": theirs}, sizes


def conformers() -> tuple[dict[str, Callable[[], object]], str]:
    """Return our and torchaudio's Conformer blocks, and their sizes."""
    encoder = ConformerEncoder(
        bands=80, hidden_size=144, layers=6, heads=4, mlp_size=432, kernel_size=15, dropout=0.0
    )
    peer = Conformer(144, num_heads=4, ffn_dim=432, num_layers=6, depthwise_conv_kernel_size=15)
    x = torch.randn(BATCH, FRAMES // 4, 144)
    lengths = torch.full((BATCH,), FRAMES // 4)
    mask = torch.ones(BATCH, FRAMES // 4, dtype=torch.bool)

    def step(output: Tensor) -> None:
        output.square().mean().backward()

    sizes = f"Conformer blocks: {count(encoder.blocks)}, torchaudio {count(peer)}"
    contenders: dict[str, Callable[[], object]] = {
        OURS: lambda: step(encoder.encode(x, mask)),
        "torchaudio Conformer": lambda: step(peer(x, lengths)[0]),
    }
    return contenders, sizes


def measure(options: argparse.Namespace) -> Section:
    """Compare both."""
    torch.manual_seed(0)
    transformer, sizes = transformers()
    conformer, more = conformers()
    comparisons = [
        take_turns("Transformer recognizer, step", transformer, options.rounds),
        take_turns("6 Conformer blocks, step", conformer, options.rounds),
    ]
    text = f"{BATCH} clips of {FRAMES} frames, {TOKENS} tokens, float32. {sizes}. {more}."
    return Section("Networks of other libraries", text, comparisons)


if __name__ == "__main__":
    report(measure, __doc__)
