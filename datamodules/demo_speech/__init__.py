"""A generated speech corpus: no download, any size."""

from datamodules.demo_speech.datamodule import DemoSpeechDataModule

__all__ = ["DemoSpeechDataModule"]
