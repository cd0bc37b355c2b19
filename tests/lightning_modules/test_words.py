"""Word times and confidence."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules.vocabulary import CharacterVocabulary
from lightning_modules.words import Calibration, find_words, mark_correct

VOCABULARY = CharacterVocabulary(" ab")


def hear(path: str) -> torch.Tensor:
    """Return log-probabilities of a CTC head that hears the path, a character or - each."""
    tokens = [VOCABULARY.pad if c == "-" else VOCABULARY.symbols.index(c) for c in path]
    certain = F.one_hot(torch.tensor(tokens), len(VOCABULARY)) * 8.0
    return certain.log_softmax(-1)


def network_that_hears(*paths: str, max_tokens: int = 99) -> Any:
    """Return a network with 10 positions a second, whose decoder is sure of everything."""
    heard = torch.stack([hear(path) for path in paths])

    def decoder(tokens: torch.Tensor, *_: Any) -> torch.Tensor:
        assert tokens.shape[1] <= max_tokens
        return torch.zeros(*tokens.shape, len(VOCABULARY))

    decoder.max_tokens = max_tokens  # type: ignore[attr-defined]
    return SimpleNamespace(
        ctc_log_probabilities=lambda memory: heard,
        decoder=decoder,
        features=SimpleNamespace(sample_rate=1600, hop_length=40),
        encoder=SimpleNamespace(subsampling=4),
    )


def test_words_begin_and_end_where_their_characters_are_heard() -> None:
    network = network_that_hears("--aa-b---  -bb-", "a-- --b--------")
    mask = torch.arange(15) < torch.tensor([[15], [9]])
    first, second = find_words(network, VOCABULARY, torch.zeros(2, 15, 1), mask, ["ab b", "a b"])
    assert [word.text for word in first] == ["ab", "b"]
    assert [word.text for word in second] == ["a", "b"]
    times = [(word.start, word.end) for word in first + second]
    # Position 2 is centred on 0.2 s and reaches from 0.15 to 0.25 s.
    np.testing.assert_allclose(times, [(0.15, 0.55), (1.15, 1.35), (0.0, 0.05), (0.55, 0.65)])
    sure = float(hear("a")[0].max())
    even = -math.log(len(VOCABULARY))
    assert first[0].score == pytest.approx(2 * (sure + even) / 2)


def test_texts_that_are_empty_cut_or_longer_than_the_clip_have_words_too() -> None:
    network = network_that_hears("a-", "ab", "--", "ab", max_tokens=2)
    mask = torch.ones(4, 2, dtype=torch.bool)
    # "aa" needs a blank in between: three positions. The decoder cannot read all of "a bb".
    texts = ["", "ab", "aa", "a bb"]
    found = find_words(network, VOCABULARY, torch.zeros(4, 2, 1), mask, texts)
    none, cut, short, long = found
    assert [word.text for word in long] == ["a", "bb"]
    assert all(math.isfinite(word.score) for word in long)
    assert none == []
    assert [word.text for word in cut] == ["ab"]
    assert math.isnan(short[0].start)
    assert short[0].score < cut[0].score < 0


def test_right_words_are_those_of_an_alignment() -> None:
    assert mark_correct("the cat sat".split(), "the cat sat".split()) == [True] * 3
    assert mark_correct("a the cat sit".split(), "the cat sat".split()) == [
        False,
        True,
        True,
        False,
    ]
    assert mark_correct([], ["the"]) == []


def test_the_calibration_makes_confidence_a_probability() -> None:
    """Scores of an over-confident model: the truth has a third of their log-odds."""
    random = np.random.default_rng(0)
    odds = random.normal(4, 3, 20_000)
    right = random.random(20_000) < 1 / (1 + np.exp(-(odds / 3 - 0.5)))
    scores = -np.log1p(np.exp(-odds))
    found = Calibration.fit(scores.tolist(), right.tolist())
    assert found.slope == pytest.approx(1 / 3, abs=0.02)
    assert found.offset == pytest.approx(-0.5, abs=0.05)
    confidence = np.array([found.confidence(score) for score in scores])
    for low in np.arange(0.3, 1, 0.1):
        chosen = (confidence >= low) & (confidence < low + 0.1)
        assert right[chosen].mean() == pytest.approx(confidence[chosen].mean(), abs=0.03)
    perfect = Calibration.fit([-0.01, -0.5], [True, True])  # no error yet: finite
    assert 0.5 < perfect.confidence(-0.5) < 1


def test_predictions_have_word_times_and_a_calibrated_confidence(
    small: list[str], run_cli: Callable[..., Path], tones: Path
) -> None:
    args = [*small, "--trainer.max_epochs=25", "--trainer.check_val_every_n_epoch=5"]
    args += ["--data.init_args.splits=[0.6,0.4]", "--data.init_args.evaluate_on_train=true"]
    run = run_cli("fit", *args)
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert state["calibration"] != [1.0, 0.0]
    files = f"--data.init_args.predict_paths=[{tones / 'wavs' / 'T-000.wav'}]"
    run_cli("predict", *args, files)
    (line,) = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert found["id"] == "T-000"
    # The confidence is the calibrated one: it differs with another calibration.
    path = run / "checkpoints" / "best.ckpt"
    state["calibration"] = [0.0, 1.0]
    torch.save(state, path)
    run_cli("predict", *args, files)
    changed = json.loads((run / "predictions.jsonl").read_text(encoding="utf-8"))
    even = 1 / (1 + math.exp(-1))
    assert all(word["confidence"] == pytest.approx(even, abs=1e-4) for word in changed["words"])
    assert any(word["confidence"] != pytest.approx(even, abs=1e-4) for word in found["words"])
    assert " ".join(word["word"] for word in found["words"]) == " ".join(found["text"].split())
    times = [time for word in found["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    assert all(0 <= word["confidence"] <= 1 for word in found["words"])
    run_cli("test", *args)
    assert len((run / "test_words.jsonl").read_text().splitlines()) == 24
