"""Callbacks that users may add to a run."""

from callbacks.cuda_graphs import CUDAGraphs
from callbacks.image_predictions import ClassificationPictures, ProbabilityWriter
from callbacks.speech_examples import SpeechExamples
from callbacks.transcripts import TranscriptWriter
from callbacks.weight_average import ExponentialWeightAverage

__all__ = [
    "CUDAGraphs",
    "ClassificationPictures",
    "ExponentialWeightAverage",
    "ProbabilityWriter",
    "SpeechExamples",
    "TranscriptWriter",
]
