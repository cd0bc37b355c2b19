"""Text to tokens and back."""

from collections.abc import Iterable

COURSE_ALPHABET = " ,.?-abcdefghijklmnopqrstuvwxyz"


class CharacterVocabulary:
    """One token per character, after the tokens start ``<``, stop ``>``, pad ``@``, unknown ``#``.

    Args:
        alphabet: characters that have tokens; the course's 31 by default. Text is
            lower-cased first unless the alphabet has upper-case letters.

    Raises:
        ValueError: if a character is repeated or special, or separates texts in files.
    """

    special = "<>@#"
    start, stop, pad, unknown = range(4)

    def __init__(self, alphabet: str = COURSE_ALPHABET) -> None:
        self.symbols = self.special + alphabet
        for character in alphabet:
            if self.symbols.count(character) > 1:
                raise ValueError(
                    f"alphabet must not have {character!r} twice or any of {self.special!r}"
                )
        if "|" in alphabet or "".join(alphabet.splitlines()) != alphabet:
            raise ValueError("alphabet must not have '|' or a line break: files of texts use them")
        self.alphabet = alphabet
        self.lower_case = alphabet == alphabet.lower()
        self._tokens = {symbol: token for token, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def fold(self, text: str) -> str:
        """Return a text in lower case, unless the alphabet has upper-case letters."""
        return text.lower() if self.lower_case else text

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens between start and stop."""
        return [self.start, *self.encode_characters(text), self.stop]

    def encode_characters(self, text: str) -> list[int]:
        """Return a text's tokens without start and stop; unknown characters become ``#``."""
        # A special symbol in the text is treated as an unknown character.
        return [
            self.unknown if character in self.special else self._tokens.get(character, self.unknown)
            for character in self.fold(text)
        ]

    def knows(self, text: str) -> bool:
        """Return whether any character of a text is known."""
        return any(token != self.unknown for token in self.encode_characters(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text up to the stop token, with ``#`` for unknown characters."""
        characters = []
        for token in tokens:
            if token == self.stop:
                break
            if token not in (self.start, self.pad):
                characters.append(self.symbols[token])
        return "".join(characters)
