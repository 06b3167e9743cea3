"""Random histories of a deployment against the model: ClickHouse equals it whenever all is at rest.

A failure prints the seed and the shortest list of events that was found to show it;
``MODEL_SEED=<seed> SOAK_SEQUENCES=1`` repeats it.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from tests.harness.model import Event, draw_events
from tests.harness.operational import Operational, fresh_database
from tests.harness.world import World

SEQUENCES = int(os.environ.get("SOAK_SEQUENCES") or 100)
SEED = int(os.environ.get("MODEL_SEED") or time.time_ns() % 10**6)
CHUNKS = min(8, SEQUENCES)  # each is a test of its own, so that processes share them


def failure_of(world: World, events: Sequence[Event]) -> Exception | None:
    """Return what a sequence fails with."""
    world.reset()
    try:
        for event in events:
            world.happen(event)
        world.come_to_rest()
    except Exception as error:  # noqa: BLE001 -- whatever it is, the history is reported with it
        return error
    return None


def shortest(world: World, events: list[Event]) -> list[Event]:
    """Leave out events as long as the rest still fails."""
    position = len(events) - 1
    while position >= 0:
        fewer = events[:position] + events[position + 1 :]
        if failure_of(world, fewer):
            events = fewer
        position -= 1
    return events


@pytest.fixture(scope="module")
def world(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One database and one engine for all sequences: opening them costs more than a sequence."""
    with fresh_database(postgres_url) as url:
        Operational(url)
        with closing(World(url, tmp_path_factory.mktemp("model"))) as world:
            yield world


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_after_any_events_clickhouse_equals_the_model(world: World, chunk: int) -> None:
    for number in range(chunk, SEQUENCES, CHUNKS):
        seed = SEED + number
        events = draw_events(seed)
        if error := failure_of(world, events):
            lines = [f"    Event{tuple(event)}," for event in shortest(world, events)]
            raise AssertionError(
                f"MODEL_SEED={seed} SOAK_SEQUENCES=1: {error}\n" + "\n".join(lines)
            ) from error
