"""Decoding strategies of a trained recognizer: errors and speed on its test clips.

    python -m benchmarks.decoding runs/asr_conformer_small --clips 200

The real-time factor is the time to encode and decode, divided by the length of the audio. All
strategies decode the same batches, one after another.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.corpus import load_test
from metrics import CharErrorRate, WordErrorRate
from networks import BeamSearch, CTCGreedySearch, DecodingStrategy, GreedySearch

STRATEGIES: dict[str, DecodingStrategy] = {
    "greedy, attention": GreedySearch(),
    "greedy, CTC": CTCGreedySearch(),
    "beam 1": BeamSearch(1),
    "beam 8": BeamSearch(8),
    "beam 8, attention only": BeamSearch(8, ctc_weight=0.0),
    "beam 8, CTC only": BeamSearch(8, ctc_weight=1.0),
    "beam 20": BeamSearch(20),
}


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=200)
    options = parser.parse_args()
    model, data = load_test(options.run, options.clips)
    batches = list(data.test_dataloader())
    audio = sum(int(batch.lengths.sum()) for batch in batches) / data.sample_rate
    references = [text for batch in batches for text in model.spell(batch)]
    title = f"{len(references):,} clips, {audio:,.0f} s, {torch.get_num_threads()} threads"
    table = Table("strategy", "CER", "WER", "word errors", "real-time factor", title=title)
    for name, strategy in STRATEGIES.items():
        start = time.perf_counter()
        texts = []
        for batch in track(batches, name, transient=True):
            memory, mask = model.network.encode(batch.waveforms, batch.lengths)
            texts += model.transcribe(memory, mask, strategy)
        seconds = time.perf_counter() - start
        cer, wer = CharErrorRate(), WordErrorRate()
        cer.update(texts, references)
        wer.update(texts, references)
        figures = (f"{float(cer.compute()):.4f}", f"{float(wer.compute()):.4f}")
        table.add_row(name, *figures, f"{int(wer.numerator):,}", f"{seconds / audio:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
