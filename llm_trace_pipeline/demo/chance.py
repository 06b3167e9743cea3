"""Choices and texts that come out the same on every machine and every day: a seed decides them."""

import random
from functools import cache
from itertools import accumulate
from uuid import NAMESPACE_URL, UUID, uuid5

_CORPUS_CHARACTERS = 4_000_000

# From the most frequent word to the rarest.
_WORDS = """
the to a of and you is for in that it on with this your be have not are can we from as if will or
what please at an was by order account invoice team last payment plan customer when month how need
which report data agent message model before after there they about their could should would might
again error update address number first new next change check send date email question answer help
table price total cost quota credit refund ticket service server request response time hour day
week support contract discount shipping delivery package warehouse return product stock supplier
item size color review rating branch commit deploy build release pipeline cluster queue worker
cache index query schema column filter summary document section paragraph translate German French
English meeting notes calendar reminder schedule Monday Friday January October budget forecast
revenue margin quarter growth compare explain describe write rewrite shorten list create delete
open close find search read memory remember forgot prefer usually sometimes always never maybe
because although however therefore instead between during without within against across under over
only also still already soon later early late good better best wrong right missing broken slow
fast large small empty full correct urgent important café naïve résumé Zürich Łódź São数据 東京 🙂
approval policy travel hotel flight visa passport ticketing insurance claim damage photo upload
folder login password reset verify device phone battery screen network router signal battery
garden recipe flour sugar butter oven minutes music chapter character story hero village river
mountain winter summer train station platform museum painting history century
"""


def generator(seed: str) -> random.Random:
    """Return a generator of random numbers that the seed decides."""
    return random.Random(f"llm traces {seed}")  # noqa: S311 - the same rows every time is the point


def chance(rng: random.Random, probability: float) -> bool:
    """Return whether an event of this probability, 0 to 1, happens."""
    return rng.random() < probability


def random_uuid(rng: random.Random) -> UUID:
    """Return a UUID that the generator's seed decides."""
    return UUID(int=rng.getrandbits(128), version=4)


@cache
def fixed_uuid(kind: str, *numbers: int) -> UUID:
    """Return the UUID of a thing that has no other name than its kind and its numbers."""
    return uuid5(NAMESPACE_URL, f"https://llm-traces.example/{kind}/{numbers}")


@cache
def corpus() -> str:
    """Return 4 million characters of text that pack about as well as text that people write."""
    rng = generator("corpus")
    words = _WORDS.split()
    weights = list(accumulate((rank + 6) ** -0.9 for rank in range(len(words))))
    sentences: list[str] = []
    length = 0
    while length < _CORPUS_CHARACTERS:
        chosen = rng.choices(words, cum_weights=weights, k=rng.randrange(6, 18))
        if chance(rng, 0.35):
            chosen.append(rng.choice(("#", "$", "")) + str(rng.randrange(10, 90_000)))
        sentence = " ".join(chosen)
        end = rng.choice((".", ".", ".", "?", ".\n"))
        sentences.append(sentence[0].upper() + sentence[1:] + end)
        length += len(sentences[-1]) + 1
    return " ".join(sentences)


def passage(rng: random.Random, length: int) -> str:
    """Return a piece of the corpus of about this many characters."""
    start = rng.randrange(_CORPUS_CHARACTERS - length)
    return corpus()[start : start + length].strip()
