"""What happens around training."""

from callbacks.image_predictions import ClassificationPictures, ProbabilityWriter
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.run_facts import RunFacts
from callbacks.speech_examples import SpeechExamples
from callbacks.transcripts import TranscriptWriter
from callbacks.weight_average import ExponentialWeightAverage

__all__ = [
    "ClassificationPictures",
    "ExponentialWeightAverage",
    "ProbabilityWriter",
    "RunCheckpoint",
    "RunFacts",
    "SpeechExamples",
    "TranscriptWriter",
]
