"""Reading in blocks against reading the whole file."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from datamodules.audio_file import MediaFile, open_audio, open_media, regroup, resample_blocks
from errors import UserError

SECONDS = 2.3
MOST_DELAY = 960
"""Silence that a codec may add, in samples at 16 kHz: 60 ms."""


def make_sound(rate: int, seconds: float = SECONDS) -> np.ndarray:
    """Two channels: a rising tone, and a lower one of half the volume."""
    time = np.arange(int(rate * seconds)) / rate
    left = 0.4 * np.sin(2 * np.pi * (200 + 100 * time) * time)
    return np.stack([left, 0.2 * np.sin(2 * np.pi * 150 * time)], axis=1).astype(np.float32)


def write_media(path: Path, sound: np.ndarray, rate: int, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound.T), format="fltp", layout="stereo"
        )
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 192_000, 11_025])
def test_blocks_are_resampled_as_the_whole(rate: int) -> None:
    sound = torch.randn(int(rate * 4.3), generator=torch.Generator().manual_seed(rate))
    blocks = list(resample_blocks(regroup(sound.split(777), rate), rate, 16_000))
    assert len(blocks) == 5
    expected = resample(sound, rate, 16_000)
    torch.testing.assert_close(torch.cat(blocks), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "m4a", "webm", "mp4"])
def test_every_format_gives_the_same_sound(suffix: str, tmp_path: Path) -> None:
    rate = 48_000
    sound = make_sound(rate)
    path = tmp_path / f"sound.{suffix}"
    if suffix in ("m4a", "webm", "mp4"):
        write_media(path, sound, rate, "libopus" if suffix == "webm" else "aac")
    elif suffix == "opus":
        soundfile.write(path, sound, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, sound, rate)
    file = open_audio(path)
    assert isinstance(file, MediaFile) == (suffix in ("m4a", "webm", "mp4"))
    assert file.seconds == pytest.approx(SECONDS, abs=0.06)
    for channel, mono in ((None, sound.mean(1)), (0, sound[:, 0]), (1, sound[:, 1])):
        found = torch.cat(list(file.read(16_000, channel)))
        expected = resample(torch.from_numpy(mono), rate, 16_000)
        assert abs(len(found) - len(expected)) <= MOST_DELAY
        # Some encoders put silence first, so compare at the best shift.
        inner = expected[MOST_DELAY:-MOST_DELAY]
        errors = [
            (found[shift : shift + len(inner)] - inner).square().mean().sqrt()
            for shift in range(2 * MOST_DELAY)
            if shift + len(inner) <= len(found)
        ]
        assert min(errors) < 0.15 * inner.square().mean().sqrt()


def test_ffmpeg_reads_what_libsndfile_reads(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, make_sound(44_100), 44_100)
    whole = [torch.cat(list(file.read(16_000))) for file in (open_audio(path), open_media(path))]
    torch.testing.assert_close(*whole)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    def refuse(name: str, expected: str) -> None:
        with pytest.raises(UserError, match=expected) as raised:
            for _ in open_audio(tmp_path / name).read(16_000):
                pass
        assert name in str(raised.value)

    refuse("missing.wav", "does not exist")
    (tmp_path / "text.mp3").write_text("hello, hello\n" * 100)
    refuse("text.mp3", "not an audio file|no sound")
    (tmp_path / "empty.wav").touch()
    refuse("empty.wav", "not an audio file")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 22_050)
    refuse("none.wav", "0 samples")
    soundfile.write(tmp_path / "one.wav", np.zeros(1), 22_050)
    refuse("one.wav", "1 samples")
    soundfile.write(tmp_path / "odd.wav", np.zeros(9_999), 49_999)
    refuse("odd.wav", "49999 Hz")
    soundfile.write(tmp_path / "cut.wav", make_sound(22_050), 22_050)
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    refuse("cut.wav", "cut off")
    write_media(tmp_path / "cut.m4a", make_sound(48_000), 48_000, "aac")
    whole = (tmp_path / "cut.m4a").read_bytes()
    (tmp_path / "cut.m4a").write_bytes(whole[: len(whole) // 2])
    refuse("cut.m4a", "not an audio file|damaged")


def test_any_rate_and_number_of_channels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    mono = make_sound(192_000)[:, 0]
    soundfile.write(path, np.stack([mono * scale for scale in (1, 0, 1, 0, 1, 0)], 1), 192_000)
    found = torch.cat(list(open_audio(path).read(22_050)))
    expected = resample(torch.from_numpy(mono) / 2, 192_000, 22_050)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
