"""What happens around training."""

from callbacks.run_checkpoint import RunCheckpoint
from callbacks.speech_examples import SpeechExamples
from callbacks.transcripts import TranscriptWriter

__all__ = ["RunCheckpoint", "SpeechExamples", "TranscriptWriter"]
