from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import (
    AudioEncoder,
    GreedySearch,
    LogMelSpectrogram,
    MaclaurinAttention,
    SpecAugment,
    SpeechToText,
    TextDecoder,
    TextDecoderRecurrent,
    TextDecoderTransformer,
    speech_to_text,
)
from networks.attention import AttentionKernel

Decoder = Callable[..., TextDecoder]
SERIES = MaclaurinAttention(terms=3)
DECODERS: list[Decoder] = [
    TextDecoderTransformer,
    TextDecoderRecurrent,
    partial(TextDecoderTransformer, self_attention=SERIES, cross_attention=SERIES),
]
START, STOP, PAD = 0, 1, 2


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small_network(decoder: Decoder, **kwargs: Any) -> SpeechToText:
    torch.manual_seed(0)
    network = SpeechToText(
        AudioEncoder(hidden_size=16, heads=2, mlp_size=32),
        decoder(vocabulary_size=9, hidden_size=16, heads=2, mlp_size=32, **kwargs),
        LogMelSpectrogram(),
    )
    # Weights larger than usual, so that predictions differ from step to step.
    for parameter in network.decoder.parameters():
        nn.init.normal_(parameter, std=0.7)
    return network.eval()


def ragged_clips() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([5021, 8000, 7, 1600])
    waveforms = 0.1 * torch.randn(4, 8000)
    return waveforms * (torch.arange(8000) < lengths[:, None]), lengths


@pytest.mark.parametrize(
    ("decoder", "whole"), [(TextDecoderTransformer, 1_329_835), (TextDecoderRecurrent, 1_471_235)]
)
def test_parameter_counts_match_the_course(decoder: Decoder, whole: int) -> None:
    encoder = AudioEncoder()
    assert parameters(encoder) == 812_800
    network = SpeechToText(encoder, decoder(35, max_tokens=99), LogMelSpectrogram())
    assert parameters(network) == whole


@pytest.mark.parametrize("encoded_together", [3, 8])  # of four clips
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("strides", [(1, 2), (2, 2), (1, 2, 2)])
@pytest.mark.parametrize("attention", [None, SERIES], ids=["softmax", "Maclaurin"])
def test_a_clip_alone_equals_the_clip_in_a_batch(
    decoder: Decoder,
    strides: tuple[int, ...],
    attention: AttentionKernel | None,
    encoded_together: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speech_to_text, "TOGETHER", encoded_together)
    network = small_network(decoder)
    network.encoder = AudioEncoder(
        hidden_size=16, heads=2, mlp_size=32, strides=strides, attention=attention
    )
    waveforms, lengths = ragged_clips()
    tokens = torch.randint(0, 9, (4, 6))
    together = network(waveforms, lengths, tokens).logits
    for i, length in enumerate(lengths):
        alone = network(waveforms[i : i + 1, :length], lengths[i : i + 1], tokens[i : i + 1]).logits
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_prediction_depends_on_the_text_so_far_and_not_on_what_follows(
    decoder: Decoder,
) -> None:
    network = small_network(decoder)
    waveforms, lengths = ragged_clips()
    tokens = torch.randint(0, 9, (4, 6))
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 9
    before, after = (network(waveforms, lengths, t).logits for t in (tokens, changed))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert ((before[:, 3:] - after[:, 3:]).abs().amax((0, 2)) > 1e-4).all()


def test_spectrograms_are_augmented_in_training_and_left_alone_in_evaluation() -> None:
    network = small_network(TextDecoderTransformer)
    clips = ragged_clips()
    plain, mask = network.encode(*clips)
    network.augment = SpecAugment(frequency_mask=40)
    torch.testing.assert_close(network.eval().encode(*clips), (plain, mask), rtol=0, atol=0)
    network.train()
    torch.manual_seed(2)
    augmented, _ = network.encode(*clips)
    torch.manual_seed(2)
    spectrograms, frames = network.features(*clips)
    expected, _ = network.encoder(network.augment(spectrograms, frames), frames)
    torch.testing.assert_close(augmented, expected, rtol=0, atol=0)
    assert (augmented - plain).abs().max() > 1e-3


def test_the_ctc_head_predicts_the_decoders_tokens_at_each_position() -> None:
    torch.manual_seed(0)
    encoder, decoder = AudioEncoder(hidden_size=16), TextDecoderTransformer(9, hidden_size=16)
    network = SpeechToText(encoder, decoder, LogMelSpectrogram(), ctc=True)
    memory, _ = network.encode(*ragged_clips())
    probabilities = network.ctc_log_probabilities(memory).exp()
    assert probabilities.shape == (*memory.shape[:2], 9)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(memory.shape[:2]))
    assert parameters(network) == parameters(encoder) + parameters(decoder) + 9 * 17
    with pytest.raises(ValueError, match=r"no CTC head: set network\.init_args\.ctc=true"):
        small_network(TextDecoderTransformer).ctc_log_probabilities(memory)


def decode_without_cache(
    decoder: TextDecoder, memory: Tensor, mask: Tensor, max_tokens: int
) -> list[list[int]]:
    """Decode clip by clip, reading the whole text again for each token."""
    texts = []
    for clip, real in zip(memory, mask, strict=True):
        tokens = [START]
        while len(tokens) <= max_tokens and tokens[-1] != STOP:
            logits = decoder(torch.tensor([tokens]), clip[None], real[None])[0, -1]
            logits[[START, PAD]] = -torch.inf
            tokens.append(int(logits.argmax()))
        texts.append(tokens[1:])
    return texts


@pytest.mark.parametrize("decoder", DECODERS)
@torch.no_grad()
def test_cached_greedy_decoding_equals_decoding_without_a_cache(
    decoder: Decoder,
) -> None:
    network = small_network(decoder, max_tokens=30)
    lengths_seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        memory = torch.randn(4, 11, 16)
        mask = torch.arange(11) < torch.tensor([[11], [7], [3], [1]])
        expected = decode_without_cache(network.decoder, memory, mask, 30)
        decoded = GreedySearch().decode(network, memory, mask, start=START, stop=STOP, pad=PAD)
        assert decoded.shape[1] == max(map(len, expected))  # stops when every text has ended
        for row, text in zip(decoded.tolist(), expected, strict=True):
            assert row == text + [PAD] * (len(row) - len(text))
            lengths_seen.add(len(text))
    assert len(lengths_seen) > 3  # texts ended at different steps


@pytest.mark.parametrize(
    "decoder", [*DECODERS, partial(TextDecoderRecurrent, cross_attention=SERIES)]
)
@torch.no_grad()
def test_texts_of_a_clip_share_its_audio_change_places_and_end_with_it(decoder: Decoder) -> None:
    network = small_network(decoder).decoder
    memory = torch.randn(4, 11, 16)
    mask = torch.arange(11) < torch.tensor([[11], [7], [3], [1]])
    tokens = torch.randint(0, 9, (12, 6))
    clips = torch.arange(4).repeat_interleave(3)
    cache = network.start(memory, mask, width=3)
    for i in range(6):
        if i == 2:  # one text is repeated, one ends
            rows = torch.tensor([1, 1, 0, 3, 5, 4, 8, 7, 6, 9, 11, 10])
            cache.text.reorder(rows)
            tokens = tokens[rows]
        if i in (0, 4):
            kept = torch.tensor([2, 0, 3] if i == 4 else [0, 1, 2, 3])
            cache.select(kept)
            rows = (3 * kept[:, None] + torch.arange(3)).flatten()
            tokens, clips = tokens[rows], clips[rows]
        logits = network.step(tokens[:, i], cache)
        expected = network(tokens[:, : i + 1], memory[clips], mask[clips])
        torch.testing.assert_close(logits, expected[:, i], rtol=1e-4, atol=1e-4)


def test_alignment_is_a_distribution_over_the_real_positions() -> None:
    network = small_network(TextDecoderTransformer)
    memory, mask = network.encode(*ragged_clips())
    alignment = network.decoder.alignment(torch.zeros(4, 5, dtype=torch.long), memory, mask)
    torch.testing.assert_close(alignment.sum(-1), torch.ones(4, 5))
    assert (alignment * ~mask[:, None]).sum() == 0


def test_mismatched_parts_and_texts_that_are_too_long_are_rejected() -> None:
    with pytest.raises(ValueError, match="hidden_size 100 and the decoder's 200"):
        SpeechToText(AudioEncoder(hidden_size=100), TextDecoderTransformer(35), LogMelSpectrogram())
    with pytest.raises(ValueError, match="80 bands, the spectrogram has 40"):
        SpeechToText(AudioEncoder(), TextDecoderTransformer(35), LogMelSpectrogram(bands=40))
    network = small_network(TextDecoderTransformer, max_tokens=5)
    with pytest.raises(ValueError, match="6 tokens is longer than the decoder's max_tokens 5"):
        network(*ragged_clips(), torch.zeros(4, 6, dtype=torch.long))


def test_gradients_reach_every_parameter() -> None:
    for decoder in DECODERS:
        network = small_network(decoder, max_tokens=6).train()
        network(*ragged_clips(), torch.randint(0, 9, (4, 6))).logits.square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            if name == "decoder.self_attention.key.bias":  # no effect on softmax
                continue
            assert parameter.grad.abs().sum() > 0, name
