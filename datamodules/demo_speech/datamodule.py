"""Generated speech as a data module."""

from typing import Any

from datamodules.demo_speech.corpus import speak_corpus
from datamodules.demo_speech.grammar import sentences
from datamodules.ljspeech import LJSpeechDataModule, read_metadata
from errors import UserError

CORPUS_SEED = 0  # for sentences and voices; the seed of training does not change the corpus


class DemoSpeechDataModule(LJSpeechDataModule):
    """Sentences of a small grammar, spoken by eSpeak NG and read exactly like LJ Speech.

    All sentences are different, so no validation or test sentence occurs in training.

    Args:
        root: folder in LJ Speech's layout; the corpus is spoken if it does not exist.
        clips: number of sentences.
        kwargs: arguments of `LJSpeechDataModule`.
    """

    def __init__(self, root: str = "data/demo_speech", clips: int = 2_000, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.clips = clips

    def get_corpus(self) -> None:
        """Speak the corpus if ``root`` does not exist.

        Raises:
            UserError: if ``root`` holds a corpus of another size.
        """
        super().get_corpus()
        found = len(read_metadata(self.root / "metadata.csv"))
        if found != self.clips:
            raise UserError(
                f"{self.root} holds {found} clips instead of {self.clips}: delete it, or name "
                "another folder with --data.init_args.root"
            )

    def make_root(self) -> None:
        """Speak the corpus."""
        texts = sentences(self.clips, CORPUS_SEED)
        transcripts = [(f"DEMO-{i:05d}", text) for i, text in enumerate(texts, start=1)]
        speak_corpus(transcripts, self.root, seed=CORPUS_SEED)
