"""One LightningDataModule a data set: get it, check it, split it, batch it."""

from datamodules.demo_speech import DemoSpeechDataModule
from datamodules.ljspeech import LJSpeechDataModule

__all__ = ["DemoSpeechDataModule", "LJSpeechDataModule"]
