import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.vocabulary import CharacterVocabulary
from lightning_modules import SpeechRecognizer
from networks import (
    AudioEncoder,
    GreedySearch,
    LogMelSpectrogram,
    SpeechToText,
    TextDecoderTransformer,
)


def test_the_decoding_strategy_is_given_by_class_path(
    small: list[str], run_cli: Callable[..., Path]
) -> None:
    decoding = "{class_path: networks.GreedySearch, init_args: {max_tokens: 3}}"
    args = [*small, "--ckpt_path=none", f"--model.init_args.decoding={decoding}"]
    # A text that is cut is not cut silently; warnings are errors here.
    with pytest.raises(UserWarning, match=r"8 transcript\(s\) reached the maximum of 3 tokens"):
        run_cli("predict", *args)
    warnings.filterwarnings("ignore", "8 transcript")
    lines = (run_cli("predict", *args) / "predictions.csv").read_text().splitlines()
    texts = [line.split("|")[1] for line in lines]
    assert max(map(len, texts)) == 3  # of at most 20 by default


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.init_args.ctc=false", "ctc_weight 0.3 needs network.init_args.ctc=true"),
        ("ctc_weight=0", "ctc_weight 0.0 needs network.init_args.ctc=false"),
    ],
)
def test_a_ctc_head_and_its_loss_come_together(
    setting: str, message: str, small: list[str], fail_cli: Callable[..., str]
) -> None:
    assert message in fail_cli("fit", *small, f"--model.init_args.{setting}")


def test_texts_are_decoded_in_the_type_of_the_weights() -> None:
    """Also in a fit that computes in bfloat16."""
    seen: list[tuple[torch.dtype, bool]] = []

    class Spy(GreedySearch):
        def decode(self, *args: Any, **ids: Any) -> Tensor:
            seen.append((args[1].dtype, torch.is_autocast_enabled("cpu")))
            return super().decode(*args, **ids)

    vocabulary = CharacterVocabulary()
    network = SpeechToText(
        AudioEncoder(hidden_size=8, heads=2, mlp_size=8),
        TextDecoderTransformer(len(vocabulary), hidden_size=8, heads=2, mlp_size=8, max_tokens=9),
        LogMelSpectrogram(),
    )
    model = SpeechRecognizer(network, vocabulary)
    with torch.autocast("cpu", torch.bfloat16):
        memory, mask = network.encode(torch.randn(2, 9_000), torch.tensor([9_000, 8_000]))
        model.transcribe(memory.bfloat16(), mask, Spy())
    assert seen == [(torch.float32, False)]
