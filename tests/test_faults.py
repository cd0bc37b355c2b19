"""External faults: in data, numbers and memory; hostile files."""

import errno
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import soundfile
import torch

from datamodules.clips import Clip, inspect_clip
from tests.conftest import CONFIGS, ROOT, SAMPLE_RATE, speak_tones, write_corpus
from tests.stopping import Payload

# ------------------------------------------------------------------ clips that break


def break_once_inspected(
    monkeypatch: pytest.MonkeyPatch, *names: str, vanish: bool = False
) -> None:
    def inspect_then_break(id: str, path: Path, *args: Any) -> Clip:
        clip = inspect_clip(id, path, *args)
        if id in names:
            path.unlink() if vanish else path.write_bytes(path.read_bytes()[:100])
        return clip

    monkeypatch.setattr("datamodules.speech.inspect_clip", inspect_then_break)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("vanish", [False, True], ids=["corrupt", "vanished"])
def test_a_clip_that_breaks_during_the_run_is_named(
    workers: int,
    vanish: bool,
    small: list[str],
    own_tones: Path,
    fail_cli: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_once_inspected(monkeypatch, "T-002", vanish=vanish)
    args = [*small, "--data.init_args.root", own_tones, f"--data.init_args.num_workers={workers}"]
    message = fail_cli("fit", *args)
    assert "T-002.wav" in message
    assert "metadata.csv line 3" in message
    assert "set --data.init_args.max_unreadable_clips=1 or more" in message


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_unreadable_clips_do_not_fill_a_batch(
    small: list[str], run_cli: Callable[..., Path], tmp_path: Path
) -> None:
    root = write_corpus(tmp_path / "broken", 40)
    for i in (*range(6, 12), *range(25, 29)):  # 6 of 24 to train with, 4 of 8 to validate with
        (root / "wavs" / f"T-{i:03d}.wav").unlink()
    args = [*small, "--data.init_args.root", root, "--data.init_args.batch_size=4"]
    more = ["--data.init_args.max_unreadable_clips=10", "--trainer.max_epochs=3"]
    run = run_cli("fit", *args, *more)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3


@pytest.mark.filterwarnings("ignore:skipped clip")
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_clips_are_skipped_up_to_a_limit(
    workers: int,
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = write_corpus(tmp_path / "broken", 20)
    (root / "wavs" / "T-000.wav").unlink()
    break_once_inspected(monkeypatch, "T-002")
    args = [*small, "--data.init_args.root", root, f"--data.init_args.num_workers={workers}"]
    args += ["--data.init_args.batch_size=3", "--data.init_args.seed=0"]  # T-002 comes later
    message = fail_cli("fit", *args, "--data.init_args.max_unreadable_clips=1")
    assert "T-002.wav" in message
    # The run resumes, although the clip is now known to be broken from the start.
    more = ["--data.init_args.max_unreadable_clips=2", "--ckpt_path=last"]
    with pytest.warns(UserWarning, match=r"skipped clip \d of at most 2") as warned:
        run = run_cli("fit", *args, *more)
    skipped = [str(w.message) for w in warned if "skipped clip" in str(w.message)]
    assert len(skipped) == 2  # each once, though read in every epoch
    assert "T-000.wav" in skipped[0]
    assert "T-002.wav" in skipped[1]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2


# ------------------------------------------------------------------ non-finite numbers


def test_a_loss_that_is_not_finite_stops_before_its_step(
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
) -> None:
    """The checkpoint precedes the batch; with the clip repaired, the run resumes."""
    root = write_corpus(tmp_path / "corpus", 20)
    args = [*small, "--data.init_args.root", root, "--data.init_args.batch_size=2"]
    run = run_cli("fit", *args)
    whole = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    run.rename(tmp_path / "whole")
    poisoned = root / "wavs" / "T-004.wav"
    sound, _ = soundfile.read(poisoned, dtype="float32")
    loud = np.full_like(sound, 1e30)  # its power is infinite
    soundfile.write(poisoned, loud, SAMPLE_RATE, subtype="FLOAT")
    message = fail_cli("fit", *args)
    assert "is nan on a batch of 2 clips, padded to 0." in message
    assert "T-004" in message
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    step = int(message.split("the loss of step ")[1].split(" ", maxsplit=1)[0])
    assert last["global_step"] == step > 0
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    soundfile.write(poisoned, sound, SAMPLE_RATE)
    run_cli("fit", *args, "--ckpt_path=last")
    end = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in whole["state_dict"].items():
        assert torch.equal(end["state_dict"][name], value), name


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_that_are_not_finite_are_not_saved(
    steps: int, retinas: Path, run_cli: Callable[..., Path], fail_cli: Callable[..., str]
) -> None:
    args = ["--config", CONFIGS / "octmnist_mlp.yaml", f"--data.init_args.file={retinas}"]
    args += [f"--data.init_args.steps_per_execution={steps}", "--trainer.max_epochs=2"]
    args += ["--data.init_args.batch_size=50"]  # four batches
    run = run_cli("fit", *args, "--trainer.max_epochs=1")
    last = run / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    explode = ["--optimizer.init_args.lr=3e38", "--optimizer.init_args.weight_decay=1e6"]
    message = fail_cli("fit", *args, *explode, "--ckpt_path=last")
    assert "is nan on a batch of 50 images" in message or "is inf on a batch of 50" in message
    assert last.read_bytes() == before


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        "allocate",
    ],
    ids=["CUDA", "CPU"],
)
def test_out_of_memory_names_the_batch(
    error: Exception | str,
    stage: str,
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask_for_too_much(*args: Any, **kwargs: Any) -> None:
        if isinstance(error, Exception):
            raise error
        torch.empty(2**52)

    small = [*small, "--trainer.num_sanity_val_steps=0"]
    if stage == "test":
        run_cli("fit", *small, "--trainer.max_epochs=1")
    monkeypatch.setattr("networks.AudioEncoder.forward", ask_for_too_much)
    message = fail_cli(stage, *small)
    assert "out of memory (" in message
    assert "at a batch of 8 clips, padded to 0." in message
    assert " tokens (T-0" in message
    assert "lower --data.init_args.batch_size" in message


# ------------------------------------------------------------------ SLURM


def test_slurms_warning_saves_and_requeues_and_the_job_goes_on(
    small: list[str],
    run_cli: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run_cli("fit", *small)
    expected = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    whole.rename(tmp_path / "whole")
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (bin / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    for name, value in {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "train",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
    }.items():
        monkeypatch.setenv(name, value)
    stop = ["--trainer.callbacks+=tests.stopping.StopAt", "--trainer.callbacks.batch=2"]
    warning = int(signal.SIGUSR1)
    # SIGTERM follows the warning, and must not replace it.
    stop += [f"--trainer.callbacks.signals=[{warning},{int(signal.SIGTERM)}]"]
    with pytest.raises(SystemExit) as stopped:
        run_cli("fit", *small, *stop)
    assert stopped.value.code == 128 + warning
    assert (tmp_path / "asked").read_text() == "requeue 1234\n"
    # SLURM starts the same command line again.
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = run_cli("fit", *small)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert not list(run.glob("hpc_ckpt*"))


# ------------------------------------------------------------------ hostile files


def write_hostile_files(folder: Path, retinas: Path, effect: Path) -> None:
    good = write_corpus(folder / "good", 8)
    shutil.copy(retinas, folder / "good.npz")

    def corpus(name: str) -> Path:
        return Path(shutil.copytree(good, folder / name))

    with (corpus("endless line") / "metadata.csv").open("w") as file:
        for _ in range(100):
            file.write("x|" * 500_000)
    wav = corpus("2 GB wav") / "wavs" / "T-001.wav"
    content = bytearray(wav.read_bytes())
    content[40:44] = struct.pack("<I", 0x7FFF0000)
    wav.write_bytes(content)
    flac = corpus("endless flac") / "wavs" / "T-001.wav"
    stream = io.BytesIO()
    soundfile.write(stream, speak_tones("abc"), SAMPLE_RATE, format="FLAC")
    content = bytearray(stream.getvalue())
    content[21] |= 0x0F  # the 36 bits of STREAMINFO that count samples
    content[22:26] = b"\xff" * 4
    flac.write_bytes(content)
    rate = corpus("odd rate") / "wavs" / "T-001.wav"
    soundfile.write(rate, speak_tones("abc"), 22_051)
    arrays = dict(np.load(retinas))
    objects = {**arrays, "train_images": np.array([Payload(effect)], dtype=object)}
    np.savez(folder / "objects.npz", **objects)
    shape = (700_000, 28, 28)  # 550 MB of nothing
    for name, zeros in (("bomb.npz", 28**2 * 700_000), ("promise.npz", 1000)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("train_images.npy", "w") as member:
                member.write(header.getvalue())
                for start in range(0, zeros, 1 << 24):
                    member.write(bytes(min(1 << 24, zeros - start)))
            with archive.open("train_labels.npy", "w") as member:
                np.lib.format.write_array(member, np.zeros((700_000, 1), np.uint8))


def test_hostile_files_get_one_line_and_no_memory(retinas: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_hostile_files(folder, retinas, tmp_path / "effect")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for name, part in {
        "endless line": "metadata.csv line 1 has more than 100,000 characters",
        "2 GB wav": "T-001.wav",
        "endless flac": "cut it into clips of at most 10 minutes",
        "odd rate": "has 22051 Hz",
        "objects.npz": "Object arrays cannot be loaded",
        "bomb.npz": "train_images unpacks",
        "promise.npz": "train_images says it is uint8 (700000, 28, 28)",
    }.items():
        message, memory = found.pop(name)
        assert part in message
        assert name in message
        assert "\n" not in message
        assert memory < 50, name
    assert not found
    assert not (tmp_path / "effect").exists()


# ------------------------------------------------------------------ checkpoints


def test_a_full_disk_keeps_the_previous_checkpoint(
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total = ["--lr_scheduler.init_args.total_steps=6"]
    run = run_cli("fit", *small, "--trainer.max_epochs=1", *total)
    last = run / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    save = torch.save

    def fill_up(checkpoint: Any, file: BinaryIO) -> None:
        save(checkpoint, file)
        file.truncate(1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", fill_up)
    message = fail_cli("fit", *small, "--trainer.max_epochs=2", "--ckpt_path=last", *total)
    assert "could not be written ([Errno 28] No space left on device)" in message
    assert "the previous one is kept" in message
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    monkeypatch.undo()
    run_cli("fit", *small, "--trainer.max_epochs=2", "--ckpt_path=last", *total)


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_no_code_of_a_checkpoint_runs(
    stage: str,
    small: list[str],
    run_cli: Callable[..., Path],
    fail_cli: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = [*small, "--lr_scheduler.init_args.total_steps=6"]
    run = run_cli("fit", *small, "--trainer.max_epochs=1")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    effect = tmp_path / "effect"
    torch.save({**state, "payload": Payload(effect)}, run / "checkpoints" / "pickled.ckpt")
    message = fail_cli(stage, *small, f"--ckpt_path={run / 'checkpoints' / 'pickled.ckpt'}")
    assert "pickled.ckpt is not a whole checkpoint" in message
    (tmp_path / "bystander.py").write_text(f"open({str(effect)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    named = {"_class_path": "bystander.Model", "_instantiator": "bystander.build"}
    torch.save({**state, "hyper_parameters": named}, run / "checkpoints" / "named.ckpt")
    run_cli(
        stage, *small, "--trainer.max_epochs=2", f"--ckpt_path={run / 'checkpoints' / 'named.ckpt'}"
    )
    assert not effect.exists()
    assert "bystander" not in sys.modules
