"""One LightningModule per task: loss, metrics, logging; the network is injected."""

from lightning_modules.boolean_classifier import BooleanClassifier
from lightning_modules.classifier import ImageClassifier
from lightning_modules.language_model import LanguageModel, TrainedLanguageModel
from lightning_modules.schedules import WarmupLinearDecay
from lightning_modules.scratch_classifier import ScratchClassifier
from lightning_modules.speech_recognizer import SpeechRecognizer

__all__ = [
    "BooleanClassifier",
    "ImageClassifier",
    "LanguageModel",
    "ScratchClassifier",
    "SpeechRecognizer",
    "TrainedLanguageModel",
    "WarmupLinearDecay",
]
