"""The same clips in many formats, rates and channels through ``predict``: texts must hardly differ.

    python -m benchmarks.formats runs/asr_conformer_small --clips 3

Each test clip is written in each format, at each rate it allows, mono and stereo; the stereo files'
second channel is half as loud. Texts are compared with that of the clip itself, by the number of
character edits divided by its length. Needs the extra ``media``.
"""

import argparse
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rich.console import Console
from rich.table import Table
from torchaudio.functional import resample

from benchmarks.corpus import load_test
from benchmarks.long_recordings import transcribe
from datamodules.clips import read_clip

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)
FORMATS = {
    "wav": "PCM_16",
    "flac": "PCM_16",
    "ogg": "VORBIS",
    "opus": "OPUS",
    "mp3": None,
    "m4a": None,
}
OPUS_RATES = (8_000, 16_000, 48_000)


def write(path: Path, samples: NDArray[np.float32], rate: int) -> None:
    """Write samples (samples, channels) in the format that the file's name ends with."""
    kind = path.suffix[1:]
    if kind != "m4a":
        container = "OGG" if kind == "opus" else kind.upper()
        soundfile.write(path, samples, rate, subtype=FORMATS[kind], format=container)
        return
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(str(path), "w", format="ipod") as container_file:
        stream = container_file.add_stream("aac", rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = layout
        planes = np.ascontiguousarray(samples.T)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0  # without a time, the encoder's delay stays in
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container_file.mux(packet)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=3, help="the first clips of the test set (3)")
    options = parser.parse_args()
    _, data = load_test(options.run, options.clips)
    differences: dict[tuple[str, int], list[float]] = {}
    with TemporaryDirectory() as name:
        for number, clip in enumerate(data.datasets["test"].clips):
            folder = Path(name) / str(number)
            folder.mkdir()
            files = {}
            for kind, rate, channels in product(FORMATS, RATES, (1, 2)):
                if kind == "opus" and rate not in OPUS_RATES:
                    continue
                mono = read_clip(clip, data.sample_rate)
                if rate != data.sample_rate:
                    mono = resample(mono, data.sample_rate, rate)
                samples = torch.stack([mono, 0.5 * mono][:channels], dim=1).clamp(-1, 1).numpy()
                path = folder / f"{rate}_{channels}.{kind}"
                write(path, samples, rate)
                files[path] = (kind, rate)
            (original, *records), _ = transcribe(options.run, clip.path, *files)
            expected = original["text"]
            for record, key in zip(records, files.values(), strict=True):
                edits = Levenshtein.distance(record["text"], expected)
                differences.setdefault(key, []).append(edits / max(len(expected), 1))
    table = Table("format", *(f"{rate / 1000:g} kHz" for rate in RATES))
    for kind in FORMATS:
        cells = (differences.get((kind, rate)) for rate in RATES)
        table.add_row(
            kind,
            *(f"{np.mean(cell):.1%}, at most {max(cell):.1%}" if cell else "" for cell in cells),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
