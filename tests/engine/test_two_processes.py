"""Two processes train together: they share an epoch, stop and resume together, score as one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import cli
from networks.scratch import MultiLayerPerceptron
from tests.conftest import SAMPLE_RATE, write_corpus
from tests.engine.experiments import (
    QUIET,
    arguments,
    assert_equal,
    curves,
    final_state,
    image_arguments,
    stop_at,
    stream_to,
)
from tests.outside import PLAIN
from tests.processes import run_together

STOPPED = ("first stopped", "second stopped")


@pytest.mark.filterwarnings(
    "ignore:No (negative|positive) samples in targets",  # of so few images
    "ignore:The dirpath has changed",  # the checkpoint is of another run
)
def test_two_processes_share_an_epoch_resume_exactly_and_score_as_one(
    small: list[str], retinas: Path, tmp_path: Path, fail_cli: Callable[..., str]
) -> None:
    """Either of them may be asked to stop."""
    together = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    together += [f"--trainer.default_root_dir={tmp_path}"]
    tasks = ("recognizer", "cnn, two steps at once", "best", "boolean", "scratch")
    either = tasks[:2]  # in the others, only the first is asked to stop
    commands = []
    for task in tasks:
        experiment = ["fit", *arguments(task, small, retinas), *together]
        first = 3 if task == "best" else 1  # of the 2 to 8 batches
        commands += stop_and_resume(experiment, tmp_path / task, first, 2 if task in either else 1)
    scored = ("cnn, two steps at once", "boolean")
    here = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    tests = [
        ["test", *arguments(task, small, retinas), *here, "--experiment", f"{task} whole"]
        for task in scored
    ]
    shared = [[*test, "--trainer.strategy=ddp", "--trainer.devices=2"] for test in tests]
    mlp = image_arguments("mlp", retinas, "--data.init_args.steps_per_execution=5")
    mlp = ["fit", *mlp, *QUIET, "--trainer.max_epochs=2"]
    halves = [*mlp, *together, "--data.init_args.batch_size=10", "--experiment=halves"]
    # Stopped in a validation of which the second process has one batch fewer.
    uneven = ["fit", *PLAIN, *QUIET, *together, "--experiment=uneven", "--trainer.max_epochs=2"]
    uneven += ["--trainer.use_distributed_sampler=false", "--data.init_args.uneven=true"]
    cut_off = [*uneven, *stop_at(8, validation_batch=6)]
    resumed = [*uneven, "--ckpt_path=last"]
    poisoned = write_corpus(tmp_path / "poisoned", 40)
    loud = np.full(20_000, 1e30, np.float32)  # its power is infinite
    soundfile.write(poisoned / "wavs" / "T-007.wav", loud, SAMPLE_RATE, subtype="FLOAT")
    fails = ["fit", *arguments("recognizer", small, retinas), *together, "--experiment=poisoned"]
    fails += [f"--data.init_args.root={poisoned}"]
    statuses = run_together([*commands, *shared, halves, cut_off, resumed, fails], tmp_path)
    assert set(statuses[1]) == {0}  # the first process reports what stops both
    message = statuses[0].pop()
    assert message.startswith("error: the loss of step ")
    assert "T-007" in message
    stopped = [0, 143, 0, 143, 0] * len(either) + [0, 143, 0] * (len(tasks) - len(either))
    assert statuses[0] == stopped + [0] * len(scored) + [0, 143, 0]
    assert final_state(tmp_path / "uneven")["global_step"] == 16
    for task in tasks:
        check_resumed(tmp_path / f"{task} whole", 2 if task in either else 1)
    for task, examples in (("recognizer", 24), ("cnn, two steps at once", 60)):
        check_shared(tmp_path / f"{task} whole", examples)
    for test in tests:
        record = tmp_path / test[-1] / "test_metrics.json"
        together = json.loads(record.read_text())["metrics"]
        cli.main(test)
        assert together == pytest.approx(json.loads(record.read_text())["metrics"], rel=1e-4)
    cli.main([*mlp, *here, "--data.init_args.batch_size=20", "--experiment=wholes"])
    weights, expected = (final_state(tmp_path / run)["state_dict"] for run in ("halves", "wholes"))
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    check_mixing(tmp_path / "scratch whole", retinas)
    last = tmp_path / "recognizer whole" / "checkpoints" / "last.ckpt"
    longer = ["--trainer.max_epochs=3", "--lr_scheduler.init_args.total_steps=4"]
    resume = [*longer, f"--ckpt_path={last}"]
    message = fail_cli("fit", *arguments("recognizer", small, retinas), *resume)
    assert "written by 2 processes and cannot be resumed exactly by 1" in message


def stop_and_resume(experiment: list[str], run: Path, first: int, count: int) -> list[list[str]]:
    """Return the commands of a whole run, and of ``count`` runs that are stopped and resumed."""
    commands = []
    for rank, name in enumerate(("whole", *STOPPED[:count]), -1):
        where = ["--experiment", f"{run.name} {name}", *stream_to(Path(f"{run} {name}.txt"))]
        stop = stop_at(first + rank, rank=rank) if rank >= 0 else []
        commands.append([*experiment, *where, *stop])
        if stop:
            commands.append([*experiment, *where, "--ckpt_path=last"])
    return commands


def check_resumed(whole: Path, count: int) -> None:
    """The ``count`` runs that were stopped end as the one that was not."""
    for name in STOPPED[:count]:
        run = whole.with_name(whole.name.replace("whole", name))
        assert_equal(final_state(run), final_state(whole), f"{run.name}: ")
        assert curves(run) == curves(whole), run.name
        for rank in range(2):
            streams = [Path(f"{path}.txt.{rank}").read_text() for path in (run, whole)]
            assert streams[0] == streams[1], run.name


def check_shared(run: Path, examples: int) -> None:
    """In two epochs each example is seen twice, by whichever process."""
    lines = [
        line for rank in range(2) for line in Path(f"{run}.txt.{rank}").read_text().splitlines()
    ]
    seen = sorted(i for line in lines for i in json.loads(line.partition(" ")[2]))
    assert seen == sorted([*range(examples)] * 2)


def check_mixing(run: Path, retinas: Path) -> None:
    """Two processes from scratch: each learns from its share, then parameters are averaged."""
    arrays = np.load(retinas)
    images = arrays["train_images"].reshape(200, -1) / 256
    labels = arrays["train_labels"][:, 0].astype(np.int64)
    files = [run.with_name(f"{run.name}.txt.{rank}") for rank in range(2)]
    streams = [file.read_text().splitlines() for file in files]
    networks = [MultiLayerPerceptron(), MultiLayerPerceptron()]
    for lines in zip(*streams, strict=True):
        for network, line in zip(networks, lines, strict=True):
            indices = json.loads(line.partition(" ")[2])
            network.update(images[indices], labels[indices])
        for name in networks[0].parameters:
            mean = sum(network.parameters[name] for network in networks) / 2
            for network in networks:
                network.parameters[name][:] = mean
    found = final_state(run)["state_dict"]
    for name, value in networks[0].parameters.items():
        expected = torch.from_numpy(value)
        torch.testing.assert_close(found[f"parameters_.{name}"], expected, rtol=1e-9, atol=1e-9)
