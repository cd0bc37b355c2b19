"""Several corpora as one."""

from collections.abc import Sequence
from typing import Any

from datamodules.speech import SpeechDataModule, Transcript


class MultiCorpusDataModule(SpeechDataModule):
    """Several corpora, joined split by split.

    Args:
        corpora: data modules of the corpora. Each fills its splits by its own ``root``, ``splits``,
            ``max_clips`` and ``normalize_text``; its other arguments have no effect.
        kwargs: further arguments of `SpeechDataModule`; ``normalize_text`` and ``max_clips`` apply
            to the joined splits.

    Raises:
        ValueError: if no corpus is given.
    """

    def __init__(self, corpora: Sequence[SpeechDataModule], **kwargs: Any) -> None:
        if not corpora:
            raise ValueError("corpora is empty: it needs at least one data module")
        super().__init__(root=str(corpora[0].root), **kwargs)
        self.corpora = list(corpora)

    def get_corpus(self) -> None:
        for corpus in self.corpora:
            corpus.prepare_data()

    def is_present(self) -> bool:
        return all(corpus.is_present() for corpus in self.corpora)

    def read_transcripts(self) -> list[Transcript]:
        return [
            transcript._replace(split=split)
            for corpus in self.corpora
            for split, part in corpus.split_transcripts().items()
            for transcript in part
        ]
