"""Sentences of a small grammar, all different."""

import random

DETERMINERS = "the a this that every my your our".split()
ADJECTIVES = (
    "old young quick lazy brave quiet clever hungry golden purple broken gentle frozen distant"
).split()
PEOPLE = "king queen farmer sailor doctor teacher painter student driver baker judge child".split()
THINGS = (
    "box letter window garden jacket engine lamp mirror wagon violin pencil basket bridge ladder "
    "kettle blanket"
).split()
VERBS = (
    "found carried opened painted watched moved lifted wanted fixed sold borrowed measured "
    "examined forgot"
).split()
PLACES = "river market harbor forest kitchen village station valley museum temple".split()
PREPOSITIONS = "near behind beside under above across".split()
TIMES = ["yesterday", "tonight", "at noon", "last summer", "every morning", "before dawn"]


def sentence(choice: random.Random) -> str:
    """Draw a sentence: a statement, perhaps with a place or time, or a question."""

    def noun_phrase(nouns: list[str]) -> str:
        adjective = f"{choice.choice(ADJECTIVES)} " if choice.random() < 0.6 else ""
        determiner = choice.choice(DETERMINERS)
        noun = adjective + choice.choice(nouns)
        return f"an {noun}" if determiner == "a" and noun[0] in "aeiou" else f"{determiner} {noun}"

    def place() -> str:
        return f"{choice.choice(PREPOSITIONS)} the {choice.choice(PLACES)}"

    deed = f"{choice.choice(VERBS)} {noun_phrase(THINGS)}"
    form = choice.randrange(4)
    if form == 0:
        return f"{noun_phrase(PEOPLE)} {deed} {place()}."
    if form == 1:
        return f"{choice.choice(TIMES)}, {noun_phrase(PEOPLE)} {deed}."
    if form == 2:
        return f"who {deed} {place()}?"
    return f"{noun_phrase(PEOPLE)} {deed}."


def sentences(count: int, seed: int) -> list[str]:
    """Return ``count`` different sentences that depend on the seed alone."""
    choice = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[sentence(choice)] = None
    return list(found)
