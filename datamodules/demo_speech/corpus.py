"""Speak transcripts to a folder in LJ Speech's layout."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import soundfile
from rich.progress import track

from datamodules.demo_speech.espeak import SAMPLE_RATE, Voice, link_data, speak
from engine import whole_folder

VOICES = tuple(f"en-us{variant}" for variant in ("", "+m1", "+m3", "+m7", "+f2", "+f3", "+f4"))


def draw_voice(seed: int, id: str) -> Voice:
    """Return a clip's voice; it depends on (seed, id) alone."""
    choice = random.Random(f"{seed} {id}")
    return Voice(
        name=choice.choice(VOICES),
        rate=choice.randint(160, 200),
        pitch=choice.randint(35, 65),
        range=choice.randint(40, 60),
        seed=choice.getrandbits(31),
    )


def speak_corpus(
    transcripts: Sequence[tuple[str, str]], root: Path, *, seed: int = 0, workers: int = 1
) -> None:
    """Speak transcripts to ``root``, which appears only once it is complete.

    A clip's file depends on its id, its text and the seed alone.

    Args:
        transcripts: pairs of id and text.
        root: new folder; must not exist yet.
        seed: seed for the voices.
        workers: number of processes; 1 speaks in this process.

    Raises:
        UserError: if eSpeak NG is missing or cannot speak a text.
    """
    with link_data() as data, whole_folder(root) as folder:
        (folder / "wavs").mkdir()
        speak_one = partial(_speak_clip, folder / "wavs", data, seed)
        with _mapper(workers) as map_lazily:
            spoken = map_lazily(speak_one, transcripts)
            for _ in track(spoken, f"speaking {root.name}", total=len(transcripts)):
                pass
        lines = (f"{id}|{text}|{text}\n" for id, text in transcripts)
        (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")


def _speak_clip(folder: Path, data: Path, seed: int, transcript: tuple[str, str]) -> None:
    id, text = transcript
    samples = speak(text, draw_voice(seed, id), data)
    soundfile.write(str(folder / f"{id}.wav"), samples, SAMPLE_RATE, subtype="PCM_16")


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[None]]]:
    if workers == 1:
        yield map
    else:
        with ProcessPoolExecutor(workers) as pool:
            yield partial(pool.map, chunksize=16)
