"""The eSpeak NG speech synthesizer through its C interface (extra ``demo``)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from errors import UserError, extra

SAMPLE_RATE = 22_050  # eSpeak NG's own

# From speak_lib.h, eSpeak NG's public header.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_OK = 0
_LIST_END, _WORD = 0, 1


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("message", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # in characters, from 1
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Voice:
    """How to speak.

    Attributes:
        name: an eSpeak NG voice, followed by "+" and a variant: ``en-us+f2``.
        rate: words per minute, 80 … 450.
        pitch: 0 … 100; 50 is the voice's own.
        range: range of the pitch, 0 (monotone) … 100.
        seed: seed for the noise of breath and hiss.
    """

    name: str = "en-us"
    rate: int = 175
    pitch: int = 50
    range: int = 50
    seed: int = 0


@contextmanager
def link_data() -> Iterator[Path]:
    """Provide eSpeak NG's data as a temporary folder of links, for `speak`.

    The language links have lower-case names. The library then finds a voice by its file name
    instead of reading the files of all 250 voices, which would take longer than speaking.

    Raises:
        UserError: if eSpeak NG is not installed.
    """
    source = Path(_import_loader().get_data_path())
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path in source.iterdir():
            if path.name != "lang":
                (folder / path.name).symlink_to(path)
        (folder / "lang").mkdir()
        for path in source.glob("lang/*/*"):
            (folder / "lang" / path.name.lower()).symlink_to(path)
        yield folder


def _import_loader() -> Any:
    with extra("demo", "generated speech"):
        import espeakng_loader
    return espeakng_loader


@contextmanager
def _start_library(data: Path, seed: int) -> Iterator[ctypes.CDLL]:
    """Load and start the library; unload it at the end.

    The library keeps state, such as the phase of its vibrato, from one utterance to the next. Only
    loading it again resets that state; its own functions and a restart do not.
    """
    c = ctypes.CDLL(None)
    c.dlclose.argtypes = [ctypes.c_void_p]
    library = ctypes.CDLL(_import_loader().get_library_path())
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,  # text
        ctypes.c_size_t,  # its size in bytes, with the final zero
        ctypes.c_uint,  # start position
        ctypes.c_int,  # kind of position
        ctypes.c_uint,  # end position; 0: none
        ctypes.c_uint,  # flags
        ctypes.c_void_p,  # out: identifier
        ctypes.c_void_p,  # handed to the callback
    ]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    try:
        rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), 0)
        if rate != SAMPLE_RATE:
            raise UserError(
                f"eSpeak NG did not start ({rate}): reinstall the package espeakng-loader"
            )
        library.espeak_ng_SetRandSeed(seed)
        c.srand(seed)  # some variants, such as "Reed", draw from C's generator
        yield library
    finally:
        library.espeak_Terminate()
        c.dlclose(library._handle)  # noqa: SLF001 # ctypes has no function for it


def speak(text: str, voice: Voice, data: Path) -> np.ndarray:
    """Return the samples of `speak_words`."""
    return speak_words(text, voice, data)[0]


def speak_words(text: str, voice: Voice, data: Path) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Speak a text; the same text and voice give the same samples.

    Args:
        text: any text, in the voice's language.
        voice: how to speak it.
        data: folder from `link_data`.

    Returns:
        Samples at 22,050 Hz as int16, (samples,); and for each word its position in the text, in
        characters, and the time at which it begins, in seconds.

    Raises:
        UserError: if eSpeak NG is not installed or does not know the voice.
    """
    pieces: list[np.ndarray] = []
    words: list[tuple[int, float]] = []

    def receive(
        samples: "ctypes._Pointer[ctypes.c_short]",
        count: int,
        events: "ctypes._Pointer[_Event]",
    ) -> int:
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _LIST_END:
            if events[i].type == _WORD:
                words.append((events[i].text_position - 1, events[i].milliseconds / 1000))
            i += 1
        return 0  # go on

    callback = _Callback(receive)  # the variable keeps it alive while the library uses it
    with _start_library(data, voice.seed) as library:
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.name.encode()) != _OK:
            raise UserError(f"eSpeak NG has no voice {voice.name}")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            library.espeak_SetParameter(parameter, value, 0)
        utf8 = text.encode()
        status = library.espeak_Synth(
            utf8, len(utf8) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
    if status != _OK or not pieces:
        raise UserError(f"eSpeak NG could not speak {text!r}")
    return np.concatenate(pieces), words
