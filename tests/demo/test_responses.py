"""The demo's recipes against the reader of usage: a response says what the call was drawn with."""

from datetime import UTC, datetime

import pytest

from llm_trace_pipeline.demo.chance import generator
from llm_trace_pipeline.demo.requests import Call, Tokens, json_text
from llm_trace_pipeline.demo.responses import (
    CANCELLED,
    RECIPES,
    Recipe,
    server_error,
    streamed,
    summarized,
)
from llm_trace_pipeline.trace.fast_responses import read_response

PROMPT, COMPLETION, CACHED, WRITTEN, REASONING = 1000, 300, 200, 100, 50
of_every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.model)


def call_of(recipe: Recipe, tool: str | None = None) -> Call:
    reports = recipe.dialect.reports
    return Call(
        rng=generator("a call"),
        key="0123456789abcdef" * 2,
        at=datetime(2026, 3, 1, 9, tzinfo=UTC),
        model=recipe.model,
        system="You are helpful.",
        messages=["Hello"],
        reply="Hi",
        tool=tool,
        tokens=Tokens(
            PROMPT,
            COMPLETION,
            CACHED if "c" in reports else None,
            WRITTEN if "w" in reports else None,
            REASONING if "r" in reports else None,
        ),
    )


def counts_in(response: object) -> tuple[int | None, ...]:
    reading = read_response(json_text(response).encode())
    assert not reading.is_error
    return reading[:6]


def counts_of(tokens: Tokens) -> tuple[int | None, ...]:
    counts = (tokens.prompt, tokens.completion, tokens.total)
    return (*counts, tokens.cached, tokens.written, tokens.reasoning)


@of_every_recipe
@pytest.mark.parametrize("tool", [None, "send_message"])
def test_an_answer_reads_as_the_tokens_of_its_call(recipe: Recipe, tool: str | None) -> None:
    call = call_of(recipe, tool)
    usage = recipe.dialect.usage(call.tokens)
    assert counts_in(recipe.dialect.body(call, usage)) == counts_of(call.tokens)
    if recipe.streams:
        assert counts_in(streamed(call, usage)) == counts_of(call.tokens)


@of_every_recipe
def test_a_failure_reads_as_an_error(recipe: Recipe) -> None:
    call = call_of(recipe)
    for response in (recipe.dialect.failure(call), server_error(call)):
        assert read_response(json_text(response).encode()).is_error


def test_a_summary_reads_as_the_tokens_of_its_call() -> None:
    recipe = next(each for each in RECIPES if each.provider == "anthropic")
    call = call_of(recipe)
    assert counts_in(summarized(call)) == counts_of(call.tokens)


def test_a_cancelled_call_has_no_usage_and_no_error() -> None:
    assert counts_in(CANCELLED) == (0, 0, 0, None, None, None)


def test_no_two_recipes_share_a_model() -> None:
    assert len({recipe.model for recipe in RECIPES}) == len(RECIPES)
