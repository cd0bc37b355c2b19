"""Plain torch mathematics: no Lightning, no files, no logging."""

from networks.attention import (
    MaclaurinAttention,
    MultiHeadAttention,
    ResidualAttentionBlock,
    SoftmaxAttention,
    maclaurin_attention,
    maclaurin_features,
)
from networks.audio_encoder import AudioEncoder
from networks.boolean import BooleanPerceptron, IntervalMLP
from networks.classifiers import ConvNet, FeedForwardNetwork, get_number_trainable_params
from networks.decoding import DecodingStrategy, GreedySearch
from networks.log_mel_spectrogram import LogMelSpectrogram, SpecAugment
from networks.residual import ResidualNetwork
from networks.scan_augment import ScanAugment
from networks.speech_to_text import SpeechToText
from networks.text_decoder import TextDecoder, TextDecoderRecurrent, TextDecoderTransformer

__all__ = [
    "AudioEncoder",
    "BooleanPerceptron",
    "ConvNet",
    "DecodingStrategy",
    "FeedForwardNetwork",
    "GreedySearch",
    "IntervalMLP",
    "LogMelSpectrogram",
    "MaclaurinAttention",
    "MultiHeadAttention",
    "ResidualAttentionBlock",
    "ResidualNetwork",
    "ScanAugment",
    "SoftmaxAttention",
    "SpecAugment",
    "SpeechToText",
    "TextDecoder",
    "TextDecoderRecurrent",
    "TextDecoderTransformer",
    "get_number_trainable_params",
    "maclaurin_attention",
    "maclaurin_features",
]
