"""Reading in blocks against reading the whole file."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from commands.inputs.audio_file import MediaFile, open_audio, open_media, regroup, resample_blocks
from errors import UserError

SECONDS = 2.3
MOST_DELAY = 960
"""Silence that a codec may add, in samples at 16 kHz: 60 ms."""


def make_sound(rate: int, seconds: float = SECONDS) -> np.ndarray:
    """Two channels: a rising tone, and a lower one; codecs spend few bits on a quiet channel."""
    time = np.arange(int(rate * seconds)) / rate
    left = 0.4 * np.sin(2 * np.pi * (200 + 100 * time) * time)
    return np.stack([left, 0.4 * np.sin(2 * np.pi * 150 * time)], axis=1).astype(np.float32)


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
    (tmp_path / "text.raw").write_text("hello, hello\n" * 100)
    refuse("text.raw", "not an audio file|no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(9_999, np.nan), 22_050, subtype="FLOAT")
    refuse("nan.wav", "not finite")
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
    soundfile.write(tmp_path / "cut.mp3", make_sound(44_100, 20), 44_100)
    whole = (tmp_path / "cut.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(whole[: len(whole) // 2])
    refuse("cut.mp3", "cut off: it ends after [0-9.]* of 20.0 s")


def test_playlists_are_refused(tmp_path: Path) -> None:
    """A playlist would have FFmpeg read other files of the machine."""
    write_media(tmp_path / "private.m4a", make_sound(48_000), 48_000, "aac")
    soundfile.write(tmp_path / "private.mp3", make_sound(48_000), 48_000)
    for name in ("private.m4a", "private.mp3"):
        lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:3", "#EXTINF:2.3,", f"file:{tmp_path / name}"]
        (tmp_path / "list.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
        with pytest.raises(UserError, match="not an audio file"):
            open_audio(tmp_path / "list.m3u8")


def test_times_of_a_video_count_from_its_start(tmp_path: Path) -> None:
    """The sound begins two seconds after the file, and pauses for one."""
    rate, pauses = 48_000, (2.0, 1.0)
    path = tmp_path / "late.mkv"
    sound = make_sound(rate, 0.5)
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        assert isinstance(picture, av.VideoStream)
        picture.width = picture.height = 32
        stream = container.add_stream("pcm_s16le", rate=rate, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        for i in range(60):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts = i
            for packet in picture.encode(frame):
                container.mux(packet)
        time = 0.0
        for pause in pauses:
            time += pause
            samples = np.ascontiguousarray((sound * 2**15).astype(np.int16).reshape(1, -1))
            part = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
            part.sample_rate, part.pts = rate, int(time * rate)
            part.time_base = Fraction(1, rate)
            for encoded in stream.encode(part):
                container.mux(encoded)
            time += 0.5
    found = torch.cat(list(open_audio(path).read(rate)))
    loud = (found.abs() > 0.01).nonzero()[:, 0] / rate
    assert loud[0] == pytest.approx(2.0, abs=0.05)
    assert loud[-1] == pytest.approx(4.0, abs=0.05)
    assert len(loud[(loud > 2.55) & (loud < 3.45)]) == 0


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_an_ogg_file_cut_off_within_a_page_is_refused(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.ogg"
    soundfile.write(path, make_sound(48_000, 10), 48_000, format="OGG", subtype=codec)
    whole = path.read_bytes()
    ends = [match.start() for match in re.finditer(b"OggS", whole)][3:]  # after the headers
    inside = {end + step for end in ends for step in (4, 10, 27, 100) if end + step < len(whole)}
    for end in [*sorted(inside), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=f"{path} is cut off: it"):
            open_audio(path)
    path.write_bytes(whole)
    assert len(torch.cat(list(open_audio(path).read(16_000)))) == pytest.approx(160_000, abs=500)


@pytest.mark.parametrize("suffix", ["webm", "mka", "aiff", "au", "w64", "rf64"])
def test_what_is_cut_off_is_refused(suffix: str, tmp_path: Path) -> None:
    """The same bytes, whole, are read to their end."""
    path = tmp_path / f"sound.{suffix}"
    sound = make_sound(48_000, 10)
    if suffix in ("webm", "mka"):
        write_media(path, sound, 48_000, "libopus")
    else:
        soundfile.write(path, sound, 48_000, format=suffix.upper(), subtype="PCM_16")
    assert len(torch.cat(list(open_audio(path).read(16_000)))) == pytest.approx(160_000, abs=500)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{path} is cut off: it"):
        list(open_audio(path).read(16_000))


def test_an_estimated_length_refuses_nothing(tmp_path: Path) -> None:
    """FFmpeg estimates the length of AAC without a container from the first bit rates."""
    path = tmp_path / "sound.aac"
    write_media(path, make_sound(48_000, 20), 48_000, "aac")
    file = open_audio(path)
    seconds = len(torch.cat(list(file.read(16_000)))) / 16_000
    assert seconds == pytest.approx(20, abs=0.05)
    assert file.seconds > seconds + 0.1


@pytest.mark.parametrize("length", [0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_streamed_wav_is_read(length: int, tmp_path: Path) -> None:
    """A program that writes to a pipe does not know the length."""
    path = tmp_path / "streamed.wav"
    soundfile.write(path, make_sound(22_050), 22_050)
    whole = bytearray(path.read_bytes())
    whole[40:44] = length.to_bytes(4, "little")
    path.write_bytes(whole)
    assert len(torch.cat(list(open_audio(path).read(22_050)))) == int(22_050 * SECONDS)


def test_an_unfinished_header_is_named(tmp_path: Path) -> None:
    """A recorder that was killed leaves a length of 0; FFmpeg reads such a file."""
    path = tmp_path / "killed.wav"
    soundfile.write(path, make_sound(22_050), 22_050)
    whole = bytearray(path.read_bytes())
    whole[40:44] = bytes(4)
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"killed.wav has an unfinished header.* with ffmpeg"):
        open_audio(path)
    assert len(torch.cat(list(open_media(path).read(22_050)))) == int(22_050 * SECONDS)


def test_any_rate_and_number_of_channels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    mono = make_sound(192_000)[:, 0]
    soundfile.write(path, np.stack([mono * scale for scale in (1, 0, 1, 0, 1, 0)], 1), 192_000)
    found = torch.cat(list(open_audio(path).read(22_050)))
    expected = resample(torch.from_numpy(mono) / 2, 192_000, 22_050)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
