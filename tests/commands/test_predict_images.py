"""``predict RUN PATH…`` with a classifier of images."""

import base64
import csv
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base
from rich.console import Console
from torch import nn

import cli
from commands.classify import ImagePredictor
from commands.inputs.image_file import read_images
from commands.stages import load_run
from datamodules import OCTMNISTDataModule
from errors import UserError
from lightning_modules import ImageClassifier
from tests.conftest import CONFIGS


@pytest.fixture
def run(run_cli: Callable[..., Path], retinas: Path) -> Path:
    """A briefly trained CNN."""
    config = CONFIGS / "octmnist_cnn.yaml"
    short = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    return run_cli("fit", "--config", config, f"--data.init_args.file={retinas}", *short)


@pytest.fixture
def scans(tmp_path: Path, retinas: Path) -> tuple[Path, np.ndarray]:
    """Three test images as PNG files, and their pixels."""
    pixels = np.load(retinas)["test_images"][:3]
    folder = tmp_path / "scans"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder, pixels


def predict(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[str, str]:
    capsys.readouterr()
    cli.main(["predict", *map(str, args)])
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_probabilities_are_the_model_s_whatever_the_file(
    run: Path,
    scans: tuple[Path, np.ndarray],
    retinas: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, pixels = scans
    model = load_run(run).model
    with torch.no_grad():
        images = torch.from_numpy(pixels)[:, None].float() / 255
        expected = model.logits(images).softmax(-1).numpy()
    out, err = predict(capsys, run, folder)
    assert err == ""
    rows = list(csv.DictReader(io.StringIO(out)))
    names = model.class_names
    found = np.array([[float(row[name]) for name in names] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert [row["prediction"] for row in rows] == [names[i] for i in expected.argmax(1)]

    np.savez(tmp_path / "scans.npz", images=pixels)
    Image.fromarray(pixels[0]).save(
        tmp_path / "scans.tiff",
        save_all=True,
        append_images=[Image.fromarray(image) for image in pixels[1:]],
    )
    for name in ("scans.npz", "scans.tiff"):
        out, _ = predict(capsys, run, tmp_path / name, "--format", "jsonl")
        records = [json.loads(line) for line in out.splitlines()]
        assert [record["index"] for record in records] == [0, 1, 2]
        found = np.array([[record[name] for name in names] for record in records])
        np.testing.assert_allclose(found, expected, atol=1e-4)
    out, _ = predict(capsys, run, retinas)
    assert len(out.splitlines()) == 1 + len(np.load(retinas)["test_images"])


def test_a_folder_of_another_training_is_refused(
    run: Path, scans: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if it ended at the same step."""
    trained, out = tmp_path / "trained", tmp_path / "out"
    shutil.copytree(run, trained)
    predict(capsys, trained, scans[0], "--output", out)
    _, err = predict(capsys, trained, scans[0], "--output", out)
    assert "are done already" in err
    path = trained / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for value in checkpoint["state_dict"].values():
        value.mul_(2)
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit, match="holds predictions of another run, checkpoint or option"):
        predict(capsys, trained, scans[0], "--output", out)


def test_a_page_shows_images_and_saliency(
    run: Path, scans: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pixels = scans
    predict(capsys, run, folder, "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 6
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pictures]
    np.testing.assert_array_equal(shown[0][4::8, 4::8], pixels[0])
    assert page.count("<figure>") == 3


def test_saliency_is_where_the_classifier_looks() -> None:
    """A linear classifier of one pixel."""
    layer = nn.Linear(28 * 28, 2, bias=False)
    network = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1, 28 * 3 + 5] = 1.0
    model = ImageClassifier(network, ["a", "b"]).eval()
    predictor = ImagePredictor(model, OCTMNISTDataModule(), Console())
    (heat,) = predictor._explain(torch.rand(1, 1, 28, 28) + 0.1, torch.tensor([1]))
    assert heat is not None
    brightness = heat.astype(int).sum(-1)
    rest = np.delete(brightness.flatten(), 28 * 3 + 5)
    assert brightness[3, 5] > rest.max()
    assert rest.max() == rest.min()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "I"])
def test_modes_and_sizes_are_converted(mode: str, tmp_path: Path) -> None:
    """A grey image in any mode, enlarged and with bars at its sides, gives the image itself."""
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (28, 28), dtype=np.uint8)
    image = Image.fromarray(grey).resize((112, 112), Image.Resampling.NEAREST)
    wide = Image.new("L", (212, 112))
    wide.paste(image, (50, 0))
    if mode.startswith("I"):
        deep = np.asarray(wide).astype(np.uint16) * 257
        wide = Image.fromarray(deep.astype(np.int32) if mode == "I" else deep)
    elif mode == "P":  # a palette in reverse order
        reverse = Image.frombytes("P", wide.size, (255 - np.asarray(wide)).tobytes())
        reverse.putpalette([value for i in range(256) for value in [255 - i] * 3])
        wide = reverse
    else:
        wide = wide.convert(mode)
    wide.save(tmp_path / "image.tiff")
    (found,), note = read_images(tmp_path / "image.tiff", 28, 1)
    expected = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(found.astype(int), expected, atol=1)
    assert "other sizes to 28×28" in note
    assert ("16 bits to 8" in note) == mode.startswith("I")


def test_an_image_is_turned_as_its_viewer_turns_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    exif = Image.Exif()
    exif[Base.Orientation] = 6  # a viewer turns it clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    (found,), note = read_images(tmp_path / "turned.png", 28, 1)
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))
    assert note == "turned as its EXIF data say"


def test_twelve_bits_in_sixteen_are_refused(tmp_path: Path) -> None:
    pixels = np.full((28, 28), 4_080, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "scan.tiff")
    with pytest.raises(UserError, match="its depth is unclear"):
        read_images(tmp_path / "scan.tiff", 28, 1)


def test_unusable_images_are_refused(
    run: Path, tmp_path: Path, scans: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pixels = scans
    Image.new("L", (1, 1)).save(folder / "tiny.png")
    (folder / ".trash").mkdir()
    Image.new("L", (28, 28)).save(folder / ".trash" / "hidden.png")
    (folder / "text.png").write_text("no image")
    whole = (folder / "0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    np.savez(folder / "two.npz", a=pixels, b=pixels)
    np.savez(folder / "wide.npz", a=pixels.astype(float))
    Image.fromarray(pixels[0].astype(np.float32)).save(folder / "float.tiff")
    Image.fromarray(pixels[0].astype(np.int32)).save(folder / "deep.tiff")
    with zipfile.ZipFile(folder / "other.npz", "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(SystemExit, match="8 of 11 files"):
        predict(capsys, run, folder)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    for expected in (
        "tiny.png has 1×1 pixels: too few for a classifier of 28×28",
        "text.png is not an image",
        "half.png cannot be read as an image",
        "two.npz has the arrays a, b",
        "wide.npz: a is float64",
        "floating-point numbers",
        "deep.tiff cannot be read as an image (its depth is unclear: save it with 8 bits",
        "other.npz has no array test_images",
    ):
        assert expected in printed.err
