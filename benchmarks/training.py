"""An epoch of the recognizer: `fit`, a bare loop over its batches, and the coursework's way.

    python -m benchmarks.training [--speech ../shared/data/LJSpeech-1.1]

All train the course's Transformer recognizer of 1.3 million parameters: the bare loop on all clips,
the coursework's way on 256, because it takes long. The latter is written as its users would:
spectrograms are computed item by item, padded to 2,754 frames and not masked; attention is
an explicit softmax; texts are cut at 97 characters; and decoding reads the whole prefix again for
each of 98 tokens, where `fit` stops once all texts have ended. It runs in a process of its own: in
that of `fit`, the next epoch takes 15 % longer.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import textdistance
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchaudio.transforms import MelSpectrogram

import cli
from benchmarks.corpus import find_corpus
from benchmarks.harness import (
    OURS,
    Comparison,
    OwnProcess,
    Section,
    Turns,
    report,
    stopwatch,
)
from callbacks import SpeechExamples
from datamodules import LJSpeechDataModule
from datamodules.clips import Clip, read_clip
from datamodules.vocabulary import CharacterVocabulary
from engine import choose_precision
from lightning_modules import SpeechRecognizer, WarmupLinearDecay
from networks import (
    AudioEncoder,
    LogMelSpectrogram,
    SpecAugment,
    SpeechToText,
    TextDecoderTransformer,
)

CONFIG = Path(__file__).parent.parent / "configs" / "asr_transformer.yaml"
FRAMES, TOKENS, HOP = 2754, 99, 160
CLIPS = 256
BARE, COURSE = "bare loop, same batches", "coursework's way"


class CourseDataset(Dataset[tuple[Tensor, Tensor]]):
    """Clips one by one: spectrogram (80, 2754) and tokens (99)."""

    def __init__(self, clips: list[Clip], vocabulary: CharacterVocabulary) -> None:
        self.clips = clips
        self.vocabulary = vocabulary
        self.mel = MelSpectrogram(
            22_050, 400, hop_length=HOP, n_mels=80, norm="slaney", mel_scale="slaney"
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clip = self.clips[index]
        waveform = read_clip(clip, 22_050)
        waveform = F.pad(waveform, (0, (FRAMES - 1) * HOP - len(waveform)))
        log = self.mel(waveform).clamp(min=1e-10).log10()
        log = torch.maximum(log, log.max() - 8.0)
        tokens = torch.full((TOKENS,), self.vocabulary.pad)
        ids = torch.tensor(self.vocabulary.encode(clip.text[: TOKENS - 2]))
        tokens[: len(ids)] = ids
        return (log + 4.0) / 4.0, tokens


class Attention(nn.Module):
    """Multi-head attention by an explicit softmax."""

    def __init__(self, width: int, heads: int, *, key_bias: bool = False) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=key_bias)
        self.output = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor, source: Tensor, *, causal: bool = False) -> Tensor:
        batch, length, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(source)), split(self.value(source))
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        if causal:
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        return self.output(mixed)


class Block(nn.Module):
    """Residual attention and MLP, each after a LayerNorm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.attention(normed, normed if source is None else source)
        return x + self.mlp(self.norm_2(x))


class CourseNetwork(nn.Module):
    """The course's encoder and Transformer decoder: 1,329,835 parameters for 35 symbols."""

    def __init__(self, vocabulary_size: int, width: int = 200) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(80, width, 3, padding=1)
        self.conv_2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        rates = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2 - 1))
        angles = torch.arange(FRAMES // 2)[:, None] * rates
        self.sinusoids = torch.cat((angles.sin(), angles.cos()), -1)
        self.blocks = nn.ModuleList(Block(width, 2, 400) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(TOKENS, width))
        self.text_attention = Attention(width, 2, key_bias=True)
        self.cross = Block(width, 2, 400)
        self.last_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary_size)

    def encode(self, features: Tensor) -> Tensor:
        x = F.gelu(self.conv_2(F.gelu(self.conv_1(features)))).transpose(1, 2)
        x = x + self.sinusoids
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        x = x + self.text_attention(x, x, causal=True)
        return self.output(self.last_norm(self.cross(x, memory)))


class Coursework:
    """Training and validation as in the coursework's notebook."""

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        torch.manual_seed(0)
        data = LJSpeechDataModule(str(root), **settings)
        data.setup("fit")
        vocabulary = data.vocabulary
        self.vocabulary = vocabulary
        train, val = (
            CourseDataset(list(data.datasets[split].clips), vocabulary)
            for split in ("train", "val")
        )
        self.train_loader = DataLoader(train, 64, shuffle=True)
        self.val_loader = DataLoader(val, 64)
        self.network = CourseNetwork(len(vocabulary))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-3)

    def loss(self, tokens: Tensor, memory: Tensor) -> Tensor:
        logits = self.network.decode(tokens[:, :-1], memory).flatten(0, 1)
        targets = tokens[:, 1:].flatten()
        pad = self.vocabulary.pad
        return F.cross_entropy(logits, targets, ignore_index=pad, label_smoothing=0.1)

    def train(self) -> None:
        """Train an epoch."""
        self.network.train()
        for features, tokens in self.train_loader:
            self.optimizer.zero_grad()
            loss = self.loss(tokens, self.network.encode(features))
            loss.backward()
            self.optimizer.step()
            loss.item()

    @torch.no_grad()
    def validate(self) -> None:
        """Compute the loss, decode, and compare the texts with the references."""
        self.network.eval()
        alike = (
            textdistance.Jaccard(),
            textdistance.Cosine(),
            textdistance.DamerauLevenshtein(),
        )
        for features, tokens in self.val_loader:
            memory = self.network.encode(features)
            self.loss(tokens, memory).item()
            text = torch.full((len(tokens), 1), self.vocabulary.start)
            for _ in range(TOKENS - 1):
                following = self.network.decode(text, memory)[:, -1].argmax(-1, keepdim=True)
                text = torch.cat((text, following), 1)
            for row, reference in zip(text.tolist(), tokens.tolist(), strict=True):
                pair = self.vocabulary.decode(row[1:]), self.vocabulary.decode(reference)
                for similarity in alike:
                    similarity.normalized_similarity(*pair)


class BareLoop:
    """The suite's batches, network and losses in a plain PyTorch loop."""

    def __init__(self, data: LJSpeechDataModule, epochs: int) -> None:
        torch.manual_seed(0)
        self.data = data
        network = SpeechToText(
            AudioEncoder(),
            TextDecoderTransformer(data.vocabulary_size, max_tokens=200),
            LogMelSpectrogram(),
            augment=SpecAugment(),
        )
        self.model = SpeechRecognizer(network, data.vocabulary, label_smoothing=0.1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.sampler = data.make_sampler("train", shuffle=True)
        self.schedule = WarmupLinearDecay(self.optimizer, total_steps=epochs * len(self.sampler))
        self.epochs: Iterator[int] = itertools.count()
        self.is_mixed = choose_precision("cpu") == "bf16-mixed"

    def train(self) -> None:
        """Train an epoch."""
        self.model.train()
        self.sampler.set_epoch(next(self.epochs))
        for indices in self.sampler:
            batch = self.data.datasets["train"][indices]
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.is_mixed):
                losses, _, _ = self.model.losses(batch)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            losses["loss"].item()


class TimedExamples(SpeechExamples):
    """The pictures of a fit.

    Attributes:
        seconds: time that they took after each validation.
    """

    seconds: ClassVar[list[float]] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the pictures, and keep the time."""
        log = super().on_validation_epoch_end
        self.seconds.append(stopwatch(lambda: log(trainer, pl_module)))


@dataclass(frozen=True)
class Times:
    """Seconds of a fit and its peer.

    Attributes:
        training: training epochs of each contender.
        validation: validations of each contender; ours includes the pictures.
        pictures: what they took of our validations.
        clips: number of clips in training and in validation.
    """

    training: dict[str, list[float]]
    validation: dict[str, list[float]]
    pictures: list[float]
    clips: tuple[int, int]


def compare(root: Path, folder: Path, rounds: int, stage: str | None = None) -> Times:
    """Fit beside one peer: the bare loop, or a stage of the coursework's way on `CLIPS` clips.

    Beside its validation, an epoch of ours is a single step.
    """
    settings: dict[str, Any] = {"max_characters": TOKENS - 2, "num_workers": 0}
    if stage is not None:
        settings["max_clips"] = CLIPS
    data = LJSpeechDataModule(str(root), **settings)
    data.setup("fit")
    if stage is None:
        turns = Turns.prepare({BARE: BareLoop(data, rounds + 1).train})
    else:
        peer = {COURSE: OwnProcess(partial(Coursework, root, settings)).method(stage)}
        turns = Turns.prepare(peer) if stage == "train" else Turns.prepare({}, peer)
    args = ["--config", str(CONFIG), f"--data.init_args.root={root}", f"--experiment={stage}"]
    if stage == "validate":
        args.append("--trainer.limit_train_batches=1")
    args += [f"--data.init_args.{key}={value}" for key, value in settings.items()]
    search = {"class_path": "networks.GreedySearch", "init_args": {"max_tokens": TOKENS - 1}}
    args += ["--model.init_args.decoding", json.dumps(search), "--trainer.accelerator=cpu"]
    args += [f"--trainer.default_root_dir={folder}", f"--trainer.max_epochs={rounds + 1}"]
    args += [f"--trainer.callbacks={TimedExamples.__module__}.{TimedExamples.__qualname__}"]
    cli.main(["fit", *args, *turns])
    clips = len(data.datasets["train"]), len(data.datasets["val"])
    return Times(Turns.training, Turns.validation, TimedExamples.seconds[-rounds:], clips)


def measure(options: argparse.Namespace) -> Section:
    """Compare the three."""
    with TemporaryDirectory() as name:
        root = find_corpus(options.speech, Path(name) / "noise", 400)
        all_clips = compare(root, Path(name), 3 * options.rounds)
        train = compare(root, Path(name), options.rounds, "train")
        validate = compare(root, Path(name), 3 * options.rounds, "validate")
    work = "training epoch, {} clips, batch 64"
    loop = Comparison(work.format(all_clips.clips[0]), all_clips.training, {BARE: 1 / 1.05})
    training = Comparison(work.format(train.clips[0]), train.training, {COURSE: 10.0})
    ours = validate.validation[OURS]
    bare = [whole - part for whole, part in zip(ours, validate.pictures, strict=True)]
    work = f"validation, {validate.clips[1]} clips, with decoding"
    validation = Comparison(work, {**validate.validation, OURS: bare}, {COURSE: 20.0})
    drawing = Comparison(f"{work} and pictures", validate.validation)
    share = statistics.median(
        part / whole
        for part, whole in zip(all_clips.pictures, all_clips.training[OURS], strict=True)
    )
    kind = "real clips" if options.speech else "clips of noise"
    text = (
        f"`cli.py fit --config configs/asr_transformer.yaml` and its peers on the same {kind}; "
        f"texts have at most {TOKENS - 2} characters. `fit` and the bare loop compute in "
        f"{choose_precision('cpu')}. The coursework's way computes in float32, pads each clip to "
        f"{FRAMES:,} frames without masks, and reads the whole text again for each of its "
        f"{TOKENS - 1} characters. An epoch of `fit` includes its checkpoint, and a validation two "
        "more scores; the coursework's way draws no pictures. Validations follow a single step. "
        f"Those of four clips take {share:.1%} of a training epoch of {all_clips.clips[0]} clips."
    )
    return Section("The recognizer's epoch", text, [loop, training, validation, drawing])


if __name__ == "__main__":
    report(measure, __doc__, speech=True)
