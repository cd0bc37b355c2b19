import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import medmnist
import numpy as np
import pytest
import torch
from torch import nn

from datamodules import MedMNISTDataModule, OCTMNISTDataModule
from datamodules.demo_oct import DemoOCTDataModule, write_file
from datamodules.medmnist import class_weights
from datamodules.sampling import ShuffledBatchSampler
from engine import creation
from errors import UserError
from tests.conftest import CONFIGS, REAL_DATA


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "oct.npz"
    write_file(path, 100, 28)
    return path


def colour_file(path: Path, **changes: Any) -> Path:
    """Write BloodMNIST's layout: colour, 8 classes."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 30), ("val", 10), ("test", 10)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 8, (count, 1))
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_batches_are_the_files_images_scaled_and_each_comes_once(file: Path) -> None:
    data = OCTMNISTDataModule(file=str(file), batch_size=16, pixel_divisor=256)
    data.setup("fit")
    assert (data.class_count, data.channels, data.inputs) == (4, 1, 784)
    arrays = np.load(file)
    seen = []
    loader = data.train_dataloader()
    for stored in loader:
        batch = data.on_after_batch_transfer(stored, 0)
        indices = batch.indices
        assert stored.images.dtype == torch.uint8
        expected = arrays["train_images"][indices.numpy()][:, None] / 256
        np.testing.assert_allclose(batch.images.numpy(), expected, rtol=1e-6)
        assert (batch.labels.numpy() == arrays["train_labels"][indices.numpy(), 0]).all()
        seen += indices.tolist()
    assert sorted(seen) == list(range(100))


def test_colour_sets_of_any_class_number_work(tmp_path: Path) -> None:
    path = colour_file(tmp_path / "blood.npz")
    data = MedMNISTDataModule(flag="bloodmnist", file=str(path))
    data.setup("test")
    assert (data.class_count, data.channels, data.inputs) == (8, 3, 2352)
    images = data.datasets["test"].images
    assert images.shape == (10, 3, 28, 28)
    assert (images[3, 1].numpy() == np.load(path)["test_images"][3, :, :, 1]).all()


def test_a_file_of_ones_own_has_its_own_classes(
    file: Path, tmp_path: Path, run_cli: Callable[..., Path]
) -> None:
    arrays = dict(np.load(file))
    labels = {name: array % 2 for name, array in arrays.items() if name.endswith("labels")}
    np.savez(tmp_path / "own.npz", **(arrays | labels))
    data = f"--data.init_args.file={tmp_path / 'own.npz'}"
    names = '--data.init_args.class_names=["cat","dog"]'
    config = ["--config", CONFIGS / "octmnist_mlp.yaml", data, names]
    run = run_cli("fit", *config, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false")
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert next(reversed(weights.values())).shape == (2,)
    run_cli("test", *config)
    scores = json.loads((run / "test_metrics.json").read_text())["metrics"]
    assert {"test/recall/cat", "test/recall/dog"} < scores.keys()


def test_the_courses_test_set_is_the_first_images_of_each_class(file: Path) -> None:
    labels = np.load(file)["test_labels"][:, 0]
    sizes = {}
    for protocol in ("official", "course"):
        data = OCTMNISTDataModule(file=str(file), test_protocol=protocol)
        data.setup("test")
        sizes[protocol] = torch.bincount(data.datasets["test"].labels).tolist()
        if protocol == "course":
            first = [np.flatnonzero(labels == c)[:n] for c, n in enumerate((182, 55, 42, 250))]
            chosen = np.load(file)["test_images"][np.sort(np.concatenate(first))]
            assert (data.datasets["test"].images[:, 0].numpy() == chosen).all()
    assert sizes == {"official": [250] * 4, "course": [182, 55, 42, 250]}


def test_generated_images_are_the_same_every_time(file: Path, tmp_path: Path) -> None:
    write_file(tmp_path / "again.npz", 100, 28)
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()


def test_generated_images_of_another_number_are_refused(file: Path) -> None:
    DemoOCTDataModule(str(file), images=100).prepare_data()
    with pytest.raises(UserError, match=r"has 100 training images instead of 4,000: delete it"):
        DemoOCTDataModule(str(file)).prepare_data()


def test_balanced_sampling_draws_all_classes_equally() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    sampler = ShuffledBatchSampler(1000, 100, shuffle=True, weights=class_weights(labels))
    counts = torch.bincount(labels[torch.cat([step for (step,) in sampler])])
    assert counts.sum() == 1000
    assert ((counts - 1000 / 3).abs() < 60).all()


@pytest.mark.parametrize("steps_per_execution", [1, 4, 1000])
@pytest.mark.parametrize("world_size", [1, 3])
def test_each_image_comes_once_per_epoch_for_any_number_of_steps_per_execution(
    world_size: int, steps_per_execution: int
) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        settings: dict[str, Any] = {"shuffle": True, "rank": rank, "world_size": world_size}
        one = ShuffledBatchSampler(101, 7, **settings)
        several = ShuffledBatchSampler(101, 7, steps_per_execution=steps_per_execution, **settings)
        for sampler in (one, several):
            sampler.set_epoch(2)
        executions = list(several)
        assert len(executions) == len(several)
        steps = [step.tolist() for execution in executions for step in execution]
        assert steps == [step.tolist() for (step,) in one]
        assert all(len(step) <= 7 for step in steps)
        seen += [i for step in steps for i in step]
    assert sorted(seen) == list(range(101))


class Brighter(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 1


def test_augmentation_is_for_training_alone(file: Path) -> None:
    data = OCTMNISTDataModule(file=str(file), augment=Brighter())
    data.setup("fit")
    stored = next(iter(data.val_dataloader()))
    for training in (True, False):
        data.trainer = type("Trainer", (), {"training": training})()
        assert (data.on_after_batch_transfer(stored, 0).images.min() >= 1) == training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "has no array train_images"),
        (
            {"train_images": np.zeros((30, 28, 28), np.uint8)},
            r"train_images is uint8 \(30, 28, 28\)",
        ),
        ({"train_images": np.zeros((30, 28, 28, 3))}, "train_images is float64"),
        ({"train_labels": np.zeros((29, 1), int)}, r"train_labels is int64 \(29, 1\)"),
        ({"train_labels": np.zeros((30, 1))}, "train_labels is float64"),
        ({"train_labels": np.full((30, 1), 8)}, r"train_labels must be in 0 … 7"),
        ({"train_labels": np.full((30, 1), -1)}, r"train_labels must be in 0 … 7"),
        ({"train_labels": np.full((30, 1), "a", object)}, "is damaged or no .npz file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_in_a_file_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = colour_file(tmp_path / "blood.npz", **changes)
    data = MedMNISTDataModule(flag="bloodmnist", file=str(path))
    with pytest.raises(UserError, match=message) as raised:
        data.setup("fit")
    assert "blood.npz" in str(raised.value)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(kept: float, tmp_path: Path) -> None:
    path = colour_file(tmp_path / "blood.npz")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"blood\.npz is damaged or no \.npz file"):
        MedMNISTDataModule(flag="bloodmnist", file=str(path)).setup("fit")


def test_a_second_process_waits_for_the_first_to_make_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data" / "demo.npz"
    told = threading.Event()
    monkeypatch.setattr("engine.locks.rank_zero_info", lambda message: told.set())
    data = DemoOCTDataModule(file=str(path), images=30)
    second = threading.Thread(target=data.prepare_data)
    with creation(path) as is_missing:
        assert is_missing
        second.start()
        assert told.wait(30)  # the second one found the lock taken
        write_file(path, 30, 28)
        made = path.stat().st_ino, path.stat().st_mtime_ns
    second.join(30)
    assert not second.is_alive()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == made


def test_encrypted_files_are_named(tmp_path: Path) -> None:
    path = colour_file(tmp_path / "blood.npz")
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for match in re.finditer(re.escape(header), bytes(content)):
            content[match.start() + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"blood\.npz is damaged .* encrypted"):
        MedMNISTDataModule(flag="bloodmnist", file=str(path)).setup("fit")


def test_the_official_file_is_checked_and_a_missing_one_is_named(tmp_path: Path) -> None:
    data = OCTMNISTDataModule(root=str(tmp_path))
    assert data.md5 == "c68d92d5b585d8d81f7112f81e2d0842"
    assert OCTMNISTDataModule(size=64).url.endswith("octmnist_64.npz?download=1")
    write_file(tmp_path / "octmnist.npz", 10, 28)
    with pytest.raises(UserError, match=r"octmnist\.npz has the md5"):
        data.setup("fit")
    with pytest.raises(UserError, match=r"nowhere\.npz does not exist"):
        OCTMNISTDataModule(file="nowhere.npz").prepare_data()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flag": "mnist"}, "flag mnist is not a 2-D set of MedMNIST: pathmnist"),
        ({"flag": "organmnist3d"}, "flag organmnist3d is not a 2-D set"),
        ({"flag": "chestmnist"}, "chestmnist has several labels per image"),
        ({"size": 32}, "size 32 of octmnist does not exist"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"pixel_divisor": 0.0}, r"pixel_divisor 0\.0 is not above 0"),
        ({"class_names": ["a", "b"]}, "class_names needs .* a file"),
        ({"class_names": ["a", "a", "b"], "file": "own.npz"}, "which differ"),
        ({"steps_per_execution": 0}, "steps_per_execution 0"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MedMNISTDataModule(**settings)


def test_every_single_label_set_of_medmnist_is_known() -> None:
    flags = [f for f, info in medmnist.INFO.items() if "multi-label" not in info["task"]]
    flat = [flag for flag in flags if not flag.endswith("3d")]
    assert len(flat) == 11
    for flag in flat:
        assert MedMNISTDataModule(flag=flag).class_count >= 2


@pytest.mark.skipif(
    not (REAL_DATA / "octmnist.npz").exists(), reason="the real images are not here"
)
@pytest.mark.parametrize("size", [28, 64])
def test_real_images_are_read(size: int) -> None:
    name = "octmnist.npz" if size == 28 else "octmnist_64.npz"
    data = OCTMNISTDataModule(file=str(REAL_DATA / name), size=size)
    data.setup("fit")
    data.setup("test")
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [5950, 660, 504]
