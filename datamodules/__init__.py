"""One LightningDataModule per data set: get it, check it, split it, batch it."""

from datamodules.augment import ClipAugment
from datamodules.boolean import BooleanDataModule
from datamodules.corpora import MultiCorpusDataModule
from datamodules.demo_oct import DemoOCTDataModule
from datamodules.demo_speech import DemoSpeechDataModule
from datamodules.ljspeech import LJSpeechDataModule
from datamodules.manifest import ManifestDataModule
from datamodules.medmnist import MedMNISTDataModule
from datamodules.octmnist import OCTMNISTDataModule
from datamodules.transcripts import TranscriptDataModule

__all__ = [
    "BooleanDataModule",
    "ClipAugment",
    "DemoOCTDataModule",
    "DemoSpeechDataModule",
    "LJSpeechDataModule",
    "ManifestDataModule",
    "MedMNISTDataModule",
    "MultiCorpusDataModule",
    "OCTMNISTDataModule",
    "TranscriptDataModule",
]
