"""Transcribe recordings with an exported recognizer.

Usage: ``python run.py RECORDING…``. Needs numpy, onnxruntime and soundfile. A recording longer than
the training clips is cut at its quietest moments. Nothing detects speech here: silence and noise
are transcribed too.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from onnxruntime import InferenceSession

HERE = Path(__file__).parent
MODEL = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
RATE = MODEL["sample_rate"]
SYMBOLS = MODEL["symbols"]
START, STOP, PAD = (MODEL[name] for name in ("start", "stop", "pad"))
SEARCH = MODEL["search"]
SHORTEST, MAX_MISSING = 0.05, 0.1  # seconds
LARGEST_RESAMPLER = 10_000_000  # weights
Array = NDArray[Any]


def load() -> dict[str, InferenceSession]:
    """Load the networks of this folder."""
    providers = ["CPUExecutionProvider"]
    return {path.stem: InferenceSession(path, providers=providers) for path in HERE.glob("*.onnx")}


def read(path: str) -> Array:
    """Return a recording's samples, the mean of its channels, at the recognizer's rate.

    Raises:
        ValueError: if it is cut off or too short, or has samples or a rate that cannot be used.
    """
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    frames = soundfile.info(path).frames
    if len(samples) < frames - MAX_MISSING * rate:
        raise ValueError(
            f"cut off: it ends after {len(samples) / rate:.1f} of {frames / rate:.1f} s"
        )
    if len(samples) < SHORTEST * rate:
        raise ValueError(f"{len(samples)} samples are too few")
    if not np.isfinite(samples).all():
        raise ValueError("samples are not finite")
    if rate * RATE > LARGEST_RESAMPLER * math.gcd(rate, RATE) ** 2:
        raise ValueError(f"{rate} Hz cannot be resampled to {RATE} Hz")
    return resample(samples.mean(1), rate)


def resample(samples: Array, rate: int) -> Array:
    """Resample by a windowed sinc filter (six zero crossings, Hann window)."""
    if rate == RATE:
        return samples
    common = math.gcd(rate, RATE)
    step, phases = rate // common, RATE // common
    cutoff = min(step, phases) * 0.99
    width = math.ceil(6 * step / cutoff)
    taps = np.arange(-width, width + step) / step
    t = np.clip((taps - np.arange(phases)[:, None] / phases) * cutoff, -6, 6)
    kernel = np.sinc(t) * np.cos(t * math.pi / 12) ** 2 * cutoff / step  # (phases, taps)
    padded = np.pad(samples, (width, width + step))
    frames = np.lib.stride_tricks.sliding_window_view(padded, len(taps))[::step]
    length = -(-len(samples) * RATE // rate)
    return (frames @ kernel.T.astype(np.float32)).reshape(-1)[:length]


def split(samples: Array) -> list[Array]:
    """Cut at the quietest moment of the second half of each piece; return pieces."""
    longest = MODEL["longest_clip"]
    block = RATE // 20
    pieces = []
    while len(samples) > longest:
        half = samples[longest // 2 : longest]
        loudness = np.square(half[: len(half) // block * block]).reshape(-1, block).mean(1)
        end = longest // 2 + int(loudness.argmin()) * block + block // 2
        pieces.append(samples[:end])
        samples = samples[end:]
    return [*pieces, samples]


class PrefixScores:
    """Log-probabilities that CTC's text starts with each prefix (Watanabe et al. 2017)."""

    def __init__(self, logs: Array) -> None:
        self.logs = logs.astype(np.float64)  # (positions, vocabulary)
        self.probabilities = np.exp(self.logs)
        self.sums = self.logs.cumsum(0)
        self.ends_with_token = np.full((1, len(logs) + 1), -np.inf)
        self.ends_with_blank = np.concatenate(([0.0], self.sums[:, PAD]))[None]
        self.last = np.array([PAD])

    def extend(self) -> Array:
        """Return the scores of all extensions, (prefixes, vocabulary)."""
        after_blank = self.ends_with_blank[:, :-1]
        after_any = np.logaddexp(after_blank, self.ends_with_token[:, :-1])
        scores = self._sum(after_any)
        rows = np.arange(len(scores))
        scores[rows, self.last] = self._sum(after_blank)[rows, self.last]
        scores[:, STOP] = np.logaddexp(self.ends_with_token[:, -1], self.ends_with_blank[:, -1])
        return scores

    def append(self, rows: Array, tokens: Array) -> None:
        """Make prefix i the former prefix rows[i] and tokens[i]."""
        after_blank = self.ends_with_blank[rows, :-1]
        after_any = np.logaddexp(after_blank, self.ends_with_token[rows, :-1])
        before = np.where((self.last[rows] == tokens)[:, None], after_blank, after_any)
        self.ends_with_token = accumulate(before, self.sums[:, tokens].T)
        blanks = np.broadcast_to(self.sums[:, PAD], self.ends_with_token[:, 1:].shape)
        self.ends_with_blank = accumulate(self.ends_with_token[:, :-1], blanks)
        self.last = tokens

    def _sum(self, before: Array) -> Array:
        peak = np.maximum(before.max(1, keepdims=True), -1e30)
        with np.errstate(divide="ignore"):
            scores: Array = np.log(np.exp(before - peak) @ self.probabilities) + peak
        return scores


def accumulate(added: Array, sums: Array) -> Array:
    """Solve x(t) = (x(t-1) + added(t)) p(t) in logarithms, with x(0) = 0."""
    shifted = np.pad(sums[:, :-1], ((0, 0), (1, 0)))
    x = np.logaddexp.accumulate(added - shifted, axis=1) + sums
    return np.pad(x, ((0, 0), (1, 0)), constant_values=-np.inf)


class StepScores:
    """Log-probabilities of a network that reads token by token: decoder or language model."""

    def __init__(
        self,
        session: InferenceSession,
        state: dict[str, list[int]],
        memory: dict[str, Array],
    ) -> None:
        self.session = session
        self.memory = memory
        self.state = {name: np.zeros((1, *shape), np.float32) for name, shape in state.items()}
        self.inputs = {value.name for value in session.get_inputs()}
        self.position = 0
        self.total = np.zeros(1)

    def extend(self, last: Array) -> Array:
        """Return the scores of all extensions of texts with the given last tokens."""
        self.memory = {
            name: x if len(x) == len(last) else np.repeat(x[:1], len(last), axis=0)
            for name, x in self.memory.items()
        }
        feed = {"tokens": last, "position": np.array([self.position]), **self.memory, **self.state}
        logs, *state = self.session.run(
            None, {name: x for name, x in feed.items() if name in self.inputs}
        )
        self.state = dict(zip(self.state, state, strict=True))
        self.position += 1
        scores: Array = self.total[:, None] + logs.astype(np.float64)
        return scores

    def append(self, rows: Array, scores: Array) -> None:
        """Make text i the former text rows[i], with the given score."""
        self.state = {name: x[rows] for name, x in self.state.items()}
        self.total = scores


def search(encoded: dict[str, Array], networks: dict[str, InferenceSession]) -> list[int]:
    """Return the best text of an encoded clip, as tokens: joint CTC/attention beam search."""
    weight, width, exponent = SEARCH["ctc_weight"], SEARCH["width"], SEARCH["length_exponent"]
    memory = {name: encoded[name] for name in ("keys", "values", "mask")}
    readers = [(1 - weight, StepScores(networks["decoder"], MODEL["state"], memory))]
    if "language_model" in networks:
        model = StepScores(networks["language_model"], SEARCH["language_model_state"], {})
        readers.append((SEARCH["language_model_weight"], model))
    ctc = PrefixScores(encoded["ctc"][0]) if weight > 0 else None
    limit = SEARCH["max_tokens"]
    if ctc:
        limit = min(limit, encoded["mask"].shape[1] + 1)
    texts, scores = [[START]], np.zeros(1)
    best: list[int] = []
    best_value = best_score = -np.inf
    for length in range(1, SEARCH["max_tokens"] + 1):
        last = np.array([text[-1] for text in texts])
        extended = [reader.extend(last) for _, reader in readers]
        total = sum(share * logs for (share, _), logs in zip(readers, extended, strict=True))
        if ctc:
            total = total + weight * ctc.extend()
        total[:, [START, PAD]] = -np.inf
        total[scores == -np.inf] = -np.inf
        chosen = np.argsort(-total, axis=None, kind="stable")[:width]
        rows, tokens = np.divmod(chosen, total.shape[1])
        scores = total[rows, tokens]
        texts = [[*texts[row], int(token)] for row, token in zip(rows, tokens, strict=True)]
        for (_, reader), logs in zip(readers, extended, strict=True):
            reader.append(rows, logs[rows, tokens])
        if ctc:
            ctc.append(rows, tokens)
        ended = np.where(tokens == STOP, scores, -np.inf)
        i = ended.argmax()
        if ended[i] / length**exponent > best_value:
            best, best_value, best_score = texts[i], ended[i] / length**exponent, ended[i]
        scores = np.where(tokens == STOP, -np.inf, scores)
        highest = scores.max()
        if highest / limit**exponent <= best_value or highest < best_score - SEARCH["end_margin"]:
            break
    else:  # texts that reached the maximum length are cut off
        if highest / length**exponent > best_value:
            return texts[int(scores.argmax())]
    return best


def search_ctc(encoded: dict[str, Array]) -> list[int]:
    """Return the text of CTC's most probable path, as tokens."""
    logs = encoded["ctc"][0].copy()
    logs[:, [START, STOP]] = -np.inf
    path = logs.argmax(1)
    spoken = (path != np.append(PAD, path[:-1])) & (path != PAD)
    return list(path[spoken])


def transcribe(samples: Array, networks: dict[str, InferenceSession]) -> str:
    """Return the text of a waveform at the recognizer's rate."""
    encoder, texts = networks["encoder"], []
    for piece in split(samples):
        feed = {"waveforms": piece[None].astype(np.float32), "lengths": np.array([len(piece)])}
        names = [value.name for value in encoder.get_outputs()]
        encoded = dict(zip(names, encoder.run(None, feed), strict=True))
        tokens = search(encoded, networks) if SEARCH["width"] else search_ctc(encoded)
        spoken = [SYMBOLS[token] for token in tokens if token not in (START, STOP, PAD)]
        texts.append("".join(spoken).strip())
    return " ".join(filter(None, texts))


def main() -> None:
    """Transcribe the recordings of the command line."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit("usage: python run.py RECORDING…")
    networks, failed = load(), 0
    for path in sys.argv[1:]:
        try:
            if not Path(path).exists():
                raise FileNotFoundError("it does not exist")
            samples = read(path)
        except (OSError, TypeError, ValueError, soundfile.SoundFileError) as error:
            failed += 1
            print(f"skipped: {path} ({error})", file=sys.stderr)
            continue
        print(f"{path}\t{transcribe(samples, networks)}", flush=True)
    sys.exit(f"error: {failed} file(s) could not be transcribed" if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the program that reads the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
