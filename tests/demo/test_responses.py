"""The demo's recipes against the reader of usage: a response states the counts of its call."""

import pytest

from llm_trace_pipeline.demo.responses import (
    CANCELLED,
    ERRORS,
    RECIPES,
    Json,
    Recipe,
    draw_call,
    fill,
    step_counts,
)
from llm_trace_pipeline.demo.text import seeded
from llm_trace_pipeline.trace.fast_responses import read_response


def named(recipe: Recipe) -> str:
    return f"{recipe.model}-{RECIPES.index(recipe)}"


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
@pytest.mark.parametrize("seed", "abc")
def test_an_answer_reads_as_the_counts_of_its_call(recipe: Recipe, seed: str) -> None:
    call = draw_call(seeded(seed), recipe, "You are helpful.", 5000, 400)
    reading = read_response(fill(recipe.response, call).encode())
    assert not reading.is_error
    if recipe.states("completion") or recipe.states("visible"):
        assert reading[:6] == tuple(step_counts(call).values())
    else:  # a stream that ended without its usage
        assert reading.usage_source == "none"


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_a_request_holds_everything_that_was_said(recipe: Recipe) -> None:
    call = draw_call(seeded("a call"), recipe, "You are helpful.", 500, 40)
    request = fill(recipe.request, call)
    assert "You are helpful." in request
    assert '"$' not in request
    assert len(request) > 500


@pytest.mark.parametrize("failure", ERRORS, ids=str)
def test_a_failure_reads_as_an_error(failure: Json) -> None:
    assert read_response(fill(failure, {}).encode()).is_error


def test_a_cancelled_call_has_no_usage_and_no_error() -> None:
    reading = read_response(fill(CANCELLED, {}).encode())
    assert not reading.is_error
    assert reading[:6] == (0, 0, 0, None, None, None)
