"""An exported recognizer against PyTorch, on the test clips of its run.

    python -m benchmarks.exported runs/asr_conformer_small --clips 200

Both get the same waveforms, one clip at a time and in turn, with all cores. The networks are
exported twice, exactly and with eight-bit weights.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.corpus import load_test
from commands.export import export
from metrics import CharErrorRate

Transcriber = Callable[[np.ndarray], str]


def load_program(folder: Path) -> Transcriber:
    """Return the transcription function of an exported folder."""
    spec = importlib.util.spec_from_file_location(folder.name, folder / "run.py")
    assert spec
    assert spec.loader
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    networks = program.load()
    return lambda samples: program.transcribe(samples, networks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, help="the first clips of the test set; default all")
    options = parser.parse_args()
    model, data = load_test(options.run, options.clips)
    dataset = data.datasets["test"]

    @torch.no_grad()
    def transcribe(samples: np.ndarray) -> str:
        waveform = torch.from_numpy(samples)
        memory, mask = model.network.encode(waveform[None], torch.tensor([len(waveform)]))
        text: str = model.transcribe(memory, mask, model.test_decoding)[0]
        return text.strip()

    with TemporaryDirectory() as name:
        transcribers: dict[str, Transcriber] = {"PyTorch": transcribe}
        sizes = {"PyTorch": ""}
        for kind, quantize in (("ONNX", None), ("ONNX, int8", "int8")):
            folder = Path(name) / (quantize or "exact")
            export(options.run, folder, quantize)
            transcribers[kind] = load_program(folder)
            size = sum(file.stat().st_size for file in folder.glob("*.onnx"))
            sizes[kind] = f"{size / 1e6:.1f} MB"
        texts: dict[str, list[str]] = {kind: [] for kind in transcribers}
        seconds: dict[str, list[float]] = {kind: [] for kind in transcribers}
        references = []
        for i in track(range(len(dataset)), transient=True):
            batch = dataset[[i]]
            samples = batch.waveforms[0].numpy()
            references.append(model.vocabulary.decode(batch.tokens[0].tolist()).strip())
            for kind, function in transcribers.items():
                start = time.perf_counter()
                texts[kind].append(function(samples))
                seconds[kind].append(time.perf_counter() - start)
    table = Table("", "networks", "CER", "equal to PyTorch", "time / PyTorch's, median (quartiles)")
    for kind, found in texts.items():
        cer = CharErrorRate()
        cer.update(found, references)
        equal = sum(a == b for a, b in zip(found, texts["PyTorch"], strict=True))
        ratios = np.divide(seconds[kind], seconds["PyTorch"]).tolist()
        low, middle, high = statistics.quantiles(ratios, n=4)
        same = f"{equal:,} of {len(found):,}"
        times = f"{middle:.2f} ({low:.2f} … {high:.2f})"
        table.add_row(kind, sizes[kind], f"{float(cer.compute()):.4f}", same, times)
    Console().print(table)


if __name__ == "__main__":
    main()
