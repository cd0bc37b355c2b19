"""``calibrate``: fit the confidence of words to the search that test and predict use."""

from pathlib import Path

import torch
from rich.progress import track

from commands.folders import make_console, refuse_missing_data
from commands.stages import load_run
from datamodules.speech import SpeechDataModule
from engine import DurableCheckpointIO, RunDirectory, read_checkpoint
from errors import UserError
from lightning_modules import SpeechRecognizer
from lightning_modules.words import Calibration, measure_confidence, score_words


def calibrate(path: Path) -> None:
    """Fit the confidence of a recognizer's words on its validation clips; write ``best.ckpt``.

    Training fits it after each validation, to the words that this validation found. `predict`
    searches with ``test_decoding``: with a wider beam or a language model, other words are wrong.

    Args:
        path: run directory.

    Raises:
        UserError: if the run is not of a recognizer with a CTC head, its data is not there, or no
            word was found.
    """
    model, data, weights, checkpoint = load_run(path)
    if (
        not isinstance(model, SpeechRecognizer)
        or not isinstance(data, SpeechDataModule)
        or model.network.ctc_head is None
    ):
        raise UserError(f"{path} has no confidence of words: that needs a recognizer with CTC")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    refuse_missing_data(data, path)
    data.prepare_data()
    data.setup("validate")
    before = model.calibration
    model.calibration = Calibration()
    scored: list[tuple[float, bool]] = []
    with torch.inference_mode():
        for clips in track(data.val_dataloader(), "validation clips", transient=True):
            batch = model.transfer_batch_to_device(clips, model.device, 0)
            found = model.predict_step(batch)
            scored += score_words(found["words"], model.spell(batch))
    if not scored:
        raise UserError(f"{path}: no word was found in the validation clips")
    scores, right = zip(*scored, strict=True)
    after = Calibration.fit(scores, right)
    if read_checkpoint(weights)["global_step"] != checkpoint["global_step"]:
        raise UserError(f"{weights} was replaced meanwhile: calibrate the run again")
    DurableCheckpointIO().save_checkpoint(checkpoint | {"calibration": list(after)}, weights)
    errors = [
        measure_confidence([calibration.confidence(score) for score in scores], right)[0]
        for calibration in (before, after)
    ]
    RunDirectory(path).test_words.unlink(missing_ok=True)  # of the old confidence
    make_console().print(
        f"expected calibration error on {len(scores):,} words of validation: {errors[0]:.3f} "
        f"before, {errors[1]:.3f} now, in {weights}; test again for that of the test's words"
    )
