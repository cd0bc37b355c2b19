"""Word times and confidence of a recognizer, on speech whose word onsets are known.

    python -m benchmarks.words runs/asr_conformer_small --clips 300

The test transcripts of the run's corpus, which must be of `datamodules.demo_speech`, are spoken
again: eSpeak NG reports when each word begins. Onset errors are measured on correctly recognized
words. Confidence is compared with whether a word is correct.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from rich.progress import track

from commands.stages import load_run
from datamodules.demo_speech.corpus import draw_voice
from datamodules.demo_speech.espeak import link_data, speak_words
from lightning_modules.words import Word, mark_correct, measure_confidence
from metrics import normalize_transcript

SILENCE_SECONDS = 5


@torch.no_grad()
def recognize(model: Any, samples: torch.Tensor) -> list[Word]:
    """Return the words of one clip."""
    words: list[Word] = model.recognize(samples[None], torch.tensor([len(samples)]))["words"][0]
    return words


def match(words: list[Word], reference: list[str]) -> list[tuple[int, int]]:
    """Return pairs of indices of the correct words: recognized, reference."""
    edits = Levenshtein.editops(reference, [word.text for word in words])
    blocks = edits.as_matching_blocks()
    return [(block.b + i, block.a + i) for block in blocks for i in range(block.size)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=300)
    options = parser.parse_args()
    model, data, *_ = load_run(options.run)
    texts = {transcript.id: transcript.text for transcript in data.read_transcripts()}
    chosen = [transcript.id for transcript in data.split_transcripts()["test"]][: options.clips]
    errors, shifts = [], []
    confidence: list[float] = []
    correct: list[bool] = []
    with link_data() as folder:
        for id in track(chosen):
            samples, events = speak_words(texts[id], draw_voice(0, id), folder)
            waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
            onsets = dict(events)
            spoken = [
                (normalize_transcript(found.group()), onsets.get(found.start()))
                for found in re.finditer(r"[\w']+", texts[id])
            ]
            words = recognize(model, waveform)
            late = recognize(
                model, torch.cat((torch.zeros(SILENCE_SECONDS * data.sample_rate), waveform))
            )
            reference = [word for word, _ in spoken]
            for i, j in match(words, reference):
                onset = spoken[j][1]
                if onset is not None:
                    errors.append(words[i].start - onset)
            if [word.text for word in late] == [word.text for word in words]:
                shifts += [b.start - a.start for a, b in zip(words, late, strict=True)]
            confidence += [word.confidence for word in words]
            correct += mark_correct([word.text for word in words], reference)
    report(np.array(errors), np.array(shifts), confidence, correct)


def report(errors: Any, shifts: Any, confidence: list[float], correct: list[bool]) -> None:
    """Print the figures."""
    away = np.abs(errors) * 1000
    print(
        f"{len(errors):,} onsets: median error {np.median(away):.0f} ms, mean of the signed error"
    )
    print(f"  {1000 * errors.mean():+.0f} ms, 95 % within {np.quantile(away, 0.95):.0f} ms")
    print(f"{SILENCE_SECONDS} s of silence in front shift {len(shifts):,} words by")
    print(f"  {shifts.min():.3f} … {shifts.max():.3f} s")
    error, share = measure_confidence(confidence, correct)
    wrong = len(correct) - sum(correct)
    print(f"{len(confidence):,} words, {wrong:,} wrong: expected calibration error {error:.3f};")
    print(f"  the least confident 20 % hold {share:.0%} of the errors")


if __name__ == "__main__":
    main()
