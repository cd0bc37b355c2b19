"""Plain torch mathematics: no Lightning, no files, no logging."""

from networks.attention import (
    MaclaurinAttention,
    MultiHeadAttention,
    ResidualAttentionBlock,
    SoftmaxAttention,
    maclaurin_attention,
    maclaurin_features,
)
from networks.audio_encoder import AudioEncoder, SpeechEncoder
from networks.beam_search import BeamSearch
from networks.boolean import BooleanPerceptron, IntervalMLP
from networks.classifiers import ConvNet, FeedForwardNetwork, get_number_trainable_params
from networks.conformer import ConformerEncoder
from networks.decoding import CTCGreedySearch, DecodingStrategy, GreedySearch
from networks.language_model import CharacterLanguageModel
from networks.log_mel_spectrogram import LogMelSpectrogram, SpecAugment
from networks.residual import ResidualNetwork
from networks.scan_augment import ScanAugment
from networks.speech_to_text import SpeechToText
from networks.text_decoder import TextDecoder, TextDecoderRecurrent, TextDecoderTransformer

__all__ = [
    "AudioEncoder",
    "BeamSearch",
    "BooleanPerceptron",
    "CTCGreedySearch",
    "CharacterLanguageModel",
    "ConformerEncoder",
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
    "SpeechEncoder",
    "SpeechToText",
    "TextDecoder",
    "TextDecoderRecurrent",
    "TextDecoderTransformer",
    "get_number_trainable_params",
    "maclaurin_attention",
    "maclaurin_features",
]
