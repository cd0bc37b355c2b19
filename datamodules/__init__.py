"""One LightningDataModule per data set: get it, check it, split it, batch it."""

from datamodules.boolean import BooleanDataModule
from datamodules.demo_oct import DemoOCTDataModule
from datamodules.demo_speech import DemoSpeechDataModule
from datamodules.ljspeech import LJSpeechDataModule
from datamodules.medmnist import MedMNISTDataModule
from datamodules.octmnist import OCTMNISTDataModule

__all__ = [
    "BooleanDataModule",
    "DemoOCTDataModule",
    "DemoSpeechDataModule",
    "LJSpeechDataModule",
    "MedMNISTDataModule",
    "OCTMNISTDataModule",
]
