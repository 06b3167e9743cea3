"""The demo's texts and ids, the same on every machine and every day: a seed decides them."""

from functools import cache
from itertools import accumulate
from random import Random
from uuid import NAMESPACE_URL, UUID, uuid5

_CORPUS_CHARACTERS = 4_000_000
_PIECE_CHARACTERS = 1_000_000  # of a long passage: no two of them are alike
# From the most frequent word to the rarest.
_WORDS = """
the to a of and you is for in that it on with this your be have not are can we from as if will or
what please at an was by order account invoice team last payment plan customer when month how need
which report data agent message model before after there about their could should again error
update address number first next change send date email question answer table price total quota
refund ticket service request response week support contract delivery warehouse return product
supplier review branch commit deploy release pipeline cluster queue worker cache query schema column
summary section paragraph translate German English meeting calendar reminder schedule Monday budget
forecast revenue margin quarter growth compare explain describe rewrite create delete search prefer
remember because although between without against already soon later better wrong missing slow large
urgent approval policy travel hotel insurance claim photo password device battery network recipe
garden village mountain winter station museum century café naïve résumé Zürich Łódź São 東京 🙂
"""


def seeded(seed: str) -> Random:
    """Return a generator of random numbers that the seed decides."""
    return Random(f"llm traces {seed}")  # noqa: S311 -- the same rows every time is the point


def chance(rng: Random, probability: float) -> bool:
    """Return whether an event of this probability, 0 to 1, happens."""
    return rng.random() < probability


def random_uuid(rng: Random) -> UUID:
    """Return a UUID that the generator's seed decides."""
    return UUID(int=rng.getrandbits(128), version=4)


@cache
def fixed_uuid(kind: str, *numbers: int) -> UUID:
    """Return the UUID of a thing that has no other name than its kind and its numbers."""
    return uuid5(NAMESPACE_URL, f"https://llm-traces.example/{kind}/{numbers}")


@cache
def corpus() -> str:
    """Return 4 million characters of text that pack about as well as text that people write."""
    rng = seeded("corpus")
    words = _WORDS.split()
    weights = list(accumulate((rank + 6) ** -0.9 for rank in range(len(words))))
    sentences: list[str] = []
    length = 0
    while length < _CORPUS_CHARACTERS:
        sentence = " ".join(rng.choices(words, cum_weights=weights, k=rng.randrange(6, 18)))
        number = rng.choice(("", "", f" #{rng.randrange(10, 90_000)}"))
        end = rng.choice((".", ".", ".", "?", ".\n"))
        sentences.append(sentence[0].upper() + sentence[1:] + number + end)
        length += len(sentences[-1]) + 1
    return " ".join(sentences)


def passage(rng: Random, length: int) -> str:
    """Return this many characters of the corpus; a long passage is put together from pieces."""
    sizes = [_PIECE_CHARACTERS] * (length // _PIECE_CHARACTERS) + [length % _PIECE_CHARACTERS]
    starts = [rng.randrange(_CORPUS_CHARACTERS - size) for size in sizes]
    pieces = zip(starts, sizes, strict=True)
    return "".join(corpus()[start : start + size] for start, size in pieces)
