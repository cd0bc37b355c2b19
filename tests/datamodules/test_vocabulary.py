import pytest

from datamodules.vocabulary import CharacterVocabulary


def test_the_courses_vocabulary_has_35_symbols() -> None:
    vocabulary = CharacterVocabulary()
    assert len(vocabulary) == 35
    assert vocabulary.symbols == "<>@# ,.?-abcdefghijklmnopqrstuvwxyz"


def test_text_survives_the_round_trip_but_for_case_and_unknown_characters() -> None:
    vocabulary = CharacterVocabulary()
    tokens = vocabulary.encode("Is it so? Yes, well-known: 'é' <@>#.")
    assert (tokens[0], tokens[-1]) == (vocabulary.start, vocabulary.stop)
    assert vocabulary.decode(tokens) == "is it so? yes, well-known# ### ####."


def test_a_longer_alphabet_keeps_digits_apostrophes_and_case() -> None:
    vocabulary = CharacterVocabulary(" '0123456789abcABC")
    assert vocabulary.decode(vocabulary.encode("Abc's 42")) == "Abc's 42".replace("s", "#")


def test_decoding_ends_at_stop_and_skips_start_and_padding() -> None:
    vocabulary = CharacterVocabulary("ab")
    start, stop, pad, a, b = 0, 1, 2, 4, 5
    assert vocabulary.decode([start, a, pad, b, stop, a, a]) == "ab"
    assert vocabulary.decode([a, b, b]) == "abb"


@pytest.mark.parametrize("alphabet", ["abca", "ab#", "<"])
def test_repeated_and_special_characters_are_refused(alphabet: str) -> None:
    with pytest.raises(ValueError, match="twice"):
        CharacterVocabulary(alphabet)


@pytest.mark.parametrize("alphabet", ["ab|", "a\nb", "ab\u2028", "\x1cab"])
def test_what_separates_texts_in_files_is_refused(alphabet: str) -> None:
    with pytest.raises(ValueError, match=r"must not have '\|' or a line break"):
        CharacterVocabulary(alphabet)
