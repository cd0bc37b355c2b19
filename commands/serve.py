"""``serve``: a page in the browser that uses trained runs."""

import base64
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Lock
from typing import Any
from uuid import uuid4

import torch
from PIL import Image
from rich.progress import Progress

from callbacks.speech_examples import inspect_batch
from commands.classify import ImagePredictor
from commands.folders import make_console
from commands.inputs.audio_file import open_audio
from commands.inputs.image_file import read_images
from commands.inputs.speech_activity import MARGIN, Span, cut, load_detector
from commands.predict import load_predictor
from commands.transcribe import Transcriber
from datamodules.speech import SpeechDataModule
from datamodules.speech_dataset import SpeechBatch
from errors import UserError, extra

# Gradio reads both on import.
UPLOADS = TemporaryDirectory(prefix="uploads.")
os.environ |= {"GRADIO_TEMP_DIR": UPLOADS.name, "GRADIO_ANALYTICS_ENABLED": "False"}
with extra("serve", "serve"):
    import gradio as gr

EXAMPLES = 3
"""Number of test clips offered as examples."""
MAX_UPLOAD = "200mb"
CHECK_SECONDS, KEPT_SECONDS = 60, 3600
"""Interval between checks for old uploads, and the age at which they are deleted."""
LOCK = Lock()
"""Held while a model works: models and the detector of speech have state."""
COLUMNS = ["word", "start", "end", "confidence"]


class Recognizer:
    """A recognizer on the page.

    Args:
        name: name of the run.
        transcriber: transcriber of the run.

    Raises:
        UserError: if silero-vad is not installed.
    """

    def __init__(self, name: str, transcriber: Transcriber) -> None:
        load_detector()
        self.name = name
        self.model = transcriber.model
        self.transcriber = transcriber

    def recognize(self, path: str | None) -> tuple[str, list[list[Any]], Image.Image | None]:
        """Return the text of a recording, its words, and a picture of its first segment.

        Raises:
            gr.Error: if there is no recording, or it cannot be used; the page shows the message.
        """
        if path is None:
            raise show_error("there is no recording: record or upload one")
        with LOCK:
            ((_, found),) = self.transcriber.predict([Path(path)], Progress(disable=True))
            if isinstance(found, UserError):
                raise show_error(str(found), path)
            (record,) = found
            segments = record["segments"]
            picture = self._draw(path, segments[0]) if segments else None
        words = [
            [word[column] for column in COLUMNS]
            for segment in segments
            for word in segment.get("words", ())
        ]
        return record["text"], words, picture

    def _draw(self, path: str, segment: dict[str, Any]) -> Image.Image:
        """Draw the spectrogram and the alignment of a segment."""
        rate = self.transcriber.sample_rate
        span = Span(segment["start"] - MARGIN, segment["end"] + MARGIN)
        (waveform,) = cut(open_audio(Path(path)).read(rate), [span], rate)
        device = self.model.device
        tokens = torch.tensor([self.model.vocabulary.encode(segment["text"])], device=device)
        batch = SpeechBatch(
            indices=torch.zeros(1, dtype=torch.long),
            ids=("recording",),
            waveforms=waveform[None].to(device),
            lengths=torch.tensor([len(waveform)], device=device),
            tokens=tokens,
            token_lengths=torch.tensor([tokens.shape[1]]),
            seconds=len(waveform) / rate,
        )
        (view,) = inspect_batch(self.model, batch, [segment["text"]])
        return make_unique(view.image())


class ImageReader:
    """A classifier on the page.

    Args:
        name: name of the run.
        predictor: predictor of the run.
    """

    def __init__(self, name: str, predictor: ImagePredictor) -> None:
        self.name = name
        self.predictor = predictor
        predictor.pictures = True

    def classify(self, path: str | None) -> tuple[dict[str, float], Any, Any]:
        """Return the probabilities of an image's classes, the image and its saliency map.

        Raises:
            gr.Error: if there is no image, or it cannot be used; the page shows the message.
        """
        if path is None:
            raise show_error("there is no image: upload one")
        data = self.predictor.data
        try:
            pixels, _ = read_images(Path(path), data.size, data.channels)
            if len(pixels) > 1:
                raise UserError(f"{path} has {len(pixels)} images: upload them one by one")
            with LOCK:
                (record,) = self.predictor.classify(pixels)
        except UserError as error:
            raise show_error(str(error), path) from error
        probabilities = {name: record[name] for name in self.predictor.model.class_names}
        return probabilities, decode(record["image"]), decode(record["saliency"])


def decode(picture: str | None) -> Image.Image | None:
    """Return a picture of a record; None if there is none."""
    return (
        None if picture is None else make_unique(Image.open(io.BytesIO(base64.b64decode(picture))))
    )


def make_unique(picture: Image.Image) -> Image.Image:
    """Mark a picture, so that Gradio stores it in a file of its own.

    Files are named by their content, and an equal one would be written again while it is sent.
    """
    picture.info["id"] = uuid4().hex  # becomes part of a PNG file
    return picture


def show_error(message: str, path: str | None = None) -> gr.Error:
    """Return an error that the page shows, without the folder of the uploaded file."""
    if path is not None:
        message = message.replace(path, Path(path).name)
    return gr.Error(message, print_exception=False)


def serve(paths: Sequence[Path], host: str, port: int, max_minutes: float) -> None:
    """Serve a page until the process is interrupted.

    Args:
        paths: run directories of recognizers and of classifiers of images.
        host: address to listen on; ``127.0.0.1`` is this machine only.
        port: port to listen on.
        max_minutes: maximum length of a recording.

    Raises:
        UserError: if a run or the port cannot be used.
    """
    if not 0 < port < 2**16:
        raise UserError(f"port {port} does not exist: give --port 1 … 65535")
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))  # uploads are deleted then
    try:
        run_page(paths, host, port, max_minutes)
    except (KeyboardInterrupt, SystemExit) as stopped:
        # A recording may be being transcribed in a thread that cannot be stopped: the interpreter
        # would crash if it ended around it.
        sys.stdout.flush()
        os._exit(130 if isinstance(stopped, KeyboardInterrupt) else int(stopped.code or 0))


def run_page(paths: Sequence[Path], host: str, port: int, max_minutes: float) -> None:
    """Serve a page; arguments and errors as of `serve`."""
    with UPLOADS:
        page = build_page(*load_runs(paths, max_minutes))
        try:
            page.launch(
                server_name=host,
                server_port=port,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_UPLOAD,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
            )
        except (OSError, ValueError) as error:
            reason = str(error).partition(".")[0]
            raise UserError(
                f"{host}:{port} cannot be used ({reason}): give another --port"
            ) from error
        try:
            names = ", ".join(path.resolve().name for path in paths)
            make_console().print(f"{names}: {page.local_url} (Ctrl-C ends it)")
            Event().wait()
        finally:
            page.close(verbose=False)


def load_runs(
    paths: Sequence[Path], max_minutes: float
) -> tuple[list[Recognizer], list[ImageReader], list[str]]:
    """Return the recognizers, the classifiers, and recordings to try."""
    recognizers: list[Recognizer] = []
    readers: list[ImageReader] = []
    examples: list[str] = []
    for path in paths:
        predictor, loaded = load_predictor(path, make_console(stderr=True))
        name = path.resolve().name
        if isinstance(predictor, Transcriber):
            predictor.max_seconds = 60 * max_minutes
            recognizers.append(Recognizer(name, predictor))
            examples = examples or find_examples(loaded.data)
        else:
            readers.append(ImageReader(name, predictor))
    return recognizers, readers, examples


def find_examples(data: Any) -> list[str]:
    """Return a few test clips of a corpus; none if it is not on this machine."""
    if not isinstance(data, SpeechDataModule) or not data.is_present():
        return []
    try:
        transcripts = data.split_transcripts()["test"]
    except UserError:
        return []
    return [str(t.path) for t in transcripts[:EXAMPLES] if t.path.is_file()]


def build_page(
    recognizers: Sequence[Recognizer], readers: Sequence[ImageReader], examples: list[str]
) -> gr.Blocks:
    """Build a page with a tab for each task, and a column for each run."""
    with gr.Blocks(title="Trained runs", delete_cache=(CHECK_SECONDS, KEPT_SECONDS)) as page:
        if recognizers:
            with gr.Tab("Speech"):
                sound = gr.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Recording", buttons=[]
                )
                if examples:
                    gr.Examples(examples, sound, label="Test clips")
                button = gr.Button("Transcribe", variant="primary")
                with gr.Row():
                    for recognizer in recognizers:
                        with gr.Column():
                            outputs = [
                                gr.Textbox(label=f"{recognizer.name}: transcript", lines=3),
                                gr.Dataframe(
                                    headers=COLUMNS,
                                    label="Words: times in seconds",
                                    max_height=300,
                                    visible=recognizer.model.network.ctc_head is not None,
                                ),
                                gr.Image(
                                    label="Spectrogram and alignment of the first segment",
                                    format="png",
                                ),
                            ]
                            button.click(
                                recognizer.recognize, sound, outputs, api_name=recognizer.name
                            )
        if readers:
            with gr.Tab("Images"):
                image = gr.File(type="filepath", label="Image")  # gr.Image refuses 16 bits
                button = gr.Button("Classify", variant="primary")
                with gr.Row():
                    for reader in readers:
                        with gr.Column():
                            results = [
                                gr.Label(label=f"{reader.name}: probabilities"),
                                gr.Image(label="Image as the classifier reads it", format="png"),
                                gr.Image(
                                    label="Integrated gradients of the predicted class",
                                    format="png",
                                ),
                            ]
                            button.click(reader.classify, image, results, api_name=reader.name)
    return page
