"""``serve``: the page gives what ``predict`` gives, and exposes no other file."""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import cli
from datamodules.demo_speech.espeak import SAMPLE_RATE, Voice, link_data, speak
from tests.conftest import CONFIGS, ROOT, SMALL_MODEL

gradio_client = pytest.importorskip("gradio_client", reason="the extra serve is not installed")
pytest.importorskip("espeakng_loader", reason="the extra demo is not installed")

MAX_MINUTES = 0.5
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tones: Path, retinas: Path) -> Path:
    """A recognizer ``speech``, its copy ``other``, and a classifier ``images``."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "speech.yaml").write_text(SMALL_MODEL)
    handler = signal.getsignal(signal.SIGINT)
    here = ["--trainer.default_root_dir", str(folder / "runs"), "--trainer.max_epochs=5"]
    here.append("--trainer.enable_progress_bar=false")
    speech = ["--config", str(folder / "speech.yaml"), "--data.init_args.root", str(tones)]
    images = ["--config", str(CONFIGS / "octmnist_cnn.yaml"), "--experiment", "images"]
    try:
        cli.main(["fit", *speech, *here])
        cli.main(["fit", *images, f"--data.init_args.file={retinas}", "--threads=1", *here])
    finally:
        signal.signal(signal.SIGINT, handler)
    shutil.copytree(folder / "runs" / "speech", folder / "runs" / "other")
    return folder / "runs"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, retinas: Path) -> Path:
    """A spoken sentence, a long recording, a text and a scan."""
    folder = tmp_path_factory.mktemp("files")
    with link_data() as data:
        sound = speak("a sentence that is long enough", Voice(), data)
    soundfile.write(folder / "spoken.wav", sound, SAMPLE_RATE)
    soundfile.write(folder / "long.wav", np.zeros(int(61 * MAX_MINUTES * 8_000)), 8_000)
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(59 * MAX_MINUTES * 8_000))
    soundfile.write(folder / "busy.wav", noise, 8_000)
    (folder / "text.wav").write_text("no sound " * 50)
    Image.fromarray(np.load(retinas)["test_images"][0]).save(folder / "scan.png")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(runs: Path, port: int, uploads: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "cli.py"), "serve", str(runs / "speech")]
    command += [
        str(runs / "other"),
        str(runs / "images"),
        "--port",
        str(port),
        "--max_minutes",
        str(MAX_MINUTES),
    ]
    environment = os.environ | {"TMPDIR": str(uploads)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def address(runs: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server; afterwards nothing that was uploaded is left."""
    uploads = tmp_path_factory.mktemp("uploads")
    port = free_port()
    process = start(runs, port, uploads)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line == f"speech, other, images: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        busy = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)
        for _ in range(4):  # it ends in the middle of work
            busy.submit(gradio_client.handle_file(files / "busy.wav"), api_name="/speech")
        time.sleep(1)
        process.terminate()
        assert process.wait(30) == 143
        process.stdout.close()
    assert list(uploads.iterdir()) == []


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[object]:
    client = gradio_client.Client(address, verbose=False)
    yield client
    client.close()


def predict(capsys: pytest.CaptureFixture[str], run: Path, path: Path) -> dict[str, Any]:
    capsys.readouterr()
    cli.main(["predict", str(run), str(path), "--format", "jsonl"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def ask(client: object, path: Path, run: str) -> tuple[object, ...]:
    found: tuple[object, ...] = client.predict(  # type: ignore[attr-defined]
        gradio_client.handle_file(str(path)), api_name=f"/{run}"
    )
    return found


def test_the_page_gives_what_predict_gives_and_nothing_else(
    address: str, client: object, runs: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One test, because its server takes long to start."""
    record = predict(capsys, runs / "speech", files / "spoken.wav")
    text, words, picture = ask(client, files / "spoken.wav", "speech")
    assert text == record["text"]
    assert text
    assert isinstance(words, dict)
    (segment,) = record["segments"]
    columns = ("word", "start", "end", "confidence")
    assert words["data"] == [[word[name] for name in columns] for word in segment["words"]]
    assert picture is not None
    file = gradio_client.handle_file(str(files / "spoken.wav"))
    jobs = [client.submit(file, api_name=f"/{run}") for run in ("speech", "other") * 3]  # type: ignore[attr-defined]
    assert {job.result()[0] for job in jobs} == {record["text"]}
    expected = predict(capsys, runs / "images", files / "scan.png")
    probabilities, shown, saliency = ask(client, files / "scan.png", "images")
    assert isinstance(probabilities, dict)
    assert shown != saliency
    for found in probabilities["confidences"]:
        assert found["confidence"] == pytest.approx(expected[found["label"]], abs=1e-4)

    for name, run, message in (
        ("text.wav", "speech", "text.wav (is not an audio file|has no sound)"),
        ("long.wav", "speech", "long.wav is longer than the maximum of 0.5 minutes"),
        ("text.wav", "images", "text.wav is not an image"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=message) as raised:
            ask(client, files / name, run)
        assert "uploads" not in str(raised.value)  # no folder of this machine
    for path in ("/etc/passwd", "../setup.cfg", "setup.cfg", f"{ROOT}/cli.py"):
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{address}/gradio_api/file={path}")
        assert refused.value.code in (403, 404)
        refused.value.close()
    port = address.rpartition(":")[2]
    command = [sys.executable, str(ROOT / "cli.py"), "serve", str(runs / "images")]
    done = subprocess.run([*command, "--port", port], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: 127.0.0.1:{port} cannot be used" in done.stderr


def test_the_threads_of_a_training_are_not_the_pages(runs: Path) -> None:
    from commands.serve import load_runs

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load_runs([runs / "images"], MAX_MINUTES)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_requests_leave_nothing_in_memory(runs: Path, files: Path) -> None:
    """Objects are counted, because the size of a process depends on its allocator."""
    from gradio.processing_utils import encode_pil_to_bytes

    from commands.serve import load_runs

    (recognizer,), (reader,), _ = load_runs([runs / "speech", runs / "images"], MAX_MINUTES)

    sound = str(files / "spoken.wav")
    pictures = [recognizer.recognize(sound)[2] for _ in range(2)]
    stored = {encode_pil_to_bytes(picture, "png") for picture in pictures}  # type: ignore[no-untyped-call]
    assert len(stored) == 2  # an equal file would be written again while it is sent
    del pictures

    def ask_all() -> None:
        picture = recognizer.recognize(str(files / "spoken.wav"))[2]
        assert isinstance(picture, Image.Image)
        _, shown, saliency = reader.classify(str(files / "scan.png"))
        assert isinstance(shown, Image.Image)
        assert isinstance(saliency, Image.Image)

    def count() -> int:
        gc.collect()
        kinds = (torch.Tensor, Image.Image)
        return sum(issubclass(type(found), kinds) for found in gc.get_objects())

    ask_all()
    before = count()
    for _ in range(3):
        ask_all()
    assert count() <= before


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_in_a_browser(
    address: str, runs: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    expected = predict(capsys, runs / "speech", files / "spoken.wav")["text"]
    requested: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        page.locator("input[type=file]").first.set_input_files(files / "spoken.wav")
        page.get_by_text("0:0").first.wait_for()  # the length of the recording
        page.get_by_role("button", name="Transcribe").click()
        transcript = page.locator("textarea").first
        deadline = time.monotonic() + 60
        while transcript.input_value() != expected:
            assert time.monotonic() < deadline
            page.wait_for_timeout(200)
        page.get_by_role("tabpanel").first.locator("img").first.wait_for()
        browser.close()
    outside = [url for url in requested if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
