"""The eSpeak NG speech synthesizer through its C interface (extra ``demo``)."""

import ctypes
from dataclasses import dataclass
from functools import cache

import numpy as np

from errors import UserError

SAMPLE_RATE = 22_050  # eSpeak NG's own

# From speak_lib.h, eSpeak NG's public header.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_OK = 0
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Voice:
    """How to speak.

    Attributes:
        name: an eSpeak NG voice, with a variant behind "+": ``en-us+f2``.
        rate: words a minute, 80 … 450.
        pitch: 0 … 100, 50 is the voice's own.
        range: of the pitch, 0 (monotone) … 100.
    """

    name: str = "en-us"
    rate: int = 175
    pitch: int = 50
    range: int = 50


@cache
def _library() -> ctypes.CDLL:
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "generated speech needs the package espeakng-loader: pip install -e '.[demo]'"
        ) from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
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
    data_path = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path, 0)
    if rate != SAMPLE_RATE:
        raise UserError(f"eSpeak NG did not start ({rate}): reinstall the package espeakng-loader")
    return library


def speak(text: str, voice: Voice) -> np.ndarray:
    """Speak a text.

    Returns:
        Samples at 22,050 Hz as int16, (samples,).

    Raises:
        UserError: if eSpeak NG is not installed or does not know the voice.
    """
    library = _library()
    pieces: list[np.ndarray] = []

    def receive(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    callback = _Callback(receive)  # the name keeps it alive while the library has its address
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.name.encode()) != _OK:
        raise UserError(f"eSpeak NG has no voice {voice.name}")
    for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.range)):
        library.espeak_SetParameter(parameter, value, 0)
    data = text.encode()
    status = library.espeak_Synth(
        data, len(data) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
    )
    if status != _OK or not pieces:
        raise UserError(f"eSpeak NG could not speak {text!r}")
    return np.concatenate(pieces)
