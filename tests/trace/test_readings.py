"""What the step of a call adds to its response: the tokens of its call, and that it failed."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from llm_trace_pipeline.trace.columns import TOKEN_COLUMNS
from llm_trace_pipeline.trace.readings import Sibling
from tests.harness.source_rows import AT, load

Row = dict[str, Any]
CONFIG = {"model_endpoint_type": "openai", "model": "gpt-4o"}
STEP: Row = {"step_prompt_tokens": 1_000, "step_completion_tokens": 100, "step_total_tokens": 1_100}
COST = Decimal("0.0035")  # of 1,000 tokens at 2.50 USD a million, and 100 at 10
SILENT = {"content": "", "usage": None}
USAGE = {"usage": {"prompt_tokens": 10, "completion_tokens": 1}}
METADATA: Row = {"is_metadata_only": True, "call_type": "agent_step"}
NO_TOKENS = (0, 0, 0, None, None, None)
FAILED: Row = {"step_status": "failed", "step_stop_reason": "llm_api_error"}


def call(response: Any = SILENT, **columns: Any) -> Row:
    return {"id": "this", "llm_config": CONFIG, "response_json": response, **columns}


def row_of(response: Any = SILENT, siblings: Sequence[Sibling] = (), **columns: Any) -> Row:
    """Return the row that a call with a step becomes."""
    [row], _ = load([call(response, **columns)], ask_siblings=lambda _: siblings)
    return row


def tokens(row: Row) -> tuple[int | None, ...]:
    return tuple(row[name] for name in TOKEN_COLUMNS)


# --- whose tokens are the step's ------------------------------------------------------------------


def sibling(
    id_: str,
    seconds: int = 0,
    call_type: str | None = "agent_step",
    response: str | None = "",
    step_id: str = "step-00000",
) -> Sibling:
    return {
        "step_id": step_id,
        "id": id_,
        "call_type": call_type,
        "created_at": AT + timedelta(seconds=seconds),
        "response_json": response,
    }


ERROR = '{"error": "busy", "error_type": "RateLimitError"}'
WITH_USAGE = '{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}'


@pytest.mark.parametrize(
    ("siblings", "source"),
    [
        pytest.param([], "step", id="no trace is known"),
        pytest.param([sibling("this")], "step", id="the only trace"),
        pytest.param(
            [sibling("e", -1, response=ERROR), sibling("this")],
            "step",
            id="an error, then this empty success",
        ),
        pytest.param(
            [sibling("c", 1, "summarization"), sibling("this")],
            "step",
            id="a compaction follows under the id of the step",
        ),
        pytest.param(
            [sibling("c", 1, "summarization", WITH_USAGE), sibling("this")],
            "step",
            id="the compaction's usage is its own",
        ),
        pytest.param([sibling("this"), sibling("n", 1)], "none", id="a later call of the agent"),
        pytest.param([sibling("b", -1), sibling("this")], "step", id="an earlier silent call"),
        pytest.param(
            [sibling("b", -1, response=WITH_USAGE), sibling("this")],
            "none",
            id="an earlier call states usage",
        ),
        pytest.param(
            [sibling("b", -1, response=None), sibling("this")], "step", id="one without payload"
        ),
        pytest.param(
            [sibling("b", -1, response="{broken"), sibling("this")], "step", id="one unreadable"
        ),
        pytest.param([sibling("thas"), sibling("this")], "step", id="at once: the last id"),
        pytest.param([sibling("this"), sibling("thus")], "none", id="at once: not the last id"),
        pytest.param(
            [sibling("a", -1), sibling("this", call_type="summarization")],
            "none",
            id="this is the compaction",
        ),
        pytest.param(
            [sibling("a", -1, None), sibling("this", call_type=None)],
            "step",
            id="the last where none is the agent's call",
        ),
        pytest.param(
            [sibling("this", call_type=None), sibling("z", 1, "other")],
            "none",
            id="not the last where none is the agent's call",
        ),
    ],
)
def test_a_trace_takes_the_tokens_of_its_step_if_no_other_trace_has_them(
    siblings: list[Sibling], source: str
) -> None:
    own = next((each["call_type"] for each in siblings if each["id"] == "this"), "agent_step")
    row = row_of(siblings=siblings, call_type=own, **STEP)
    assert row["usage_source"] == source
    assert tokens(row) == ((1_000, 100, 1_100, None, None, None) if source == "step" else NO_TOKENS)
    assert row["cost_usd"] == (COST if source == "step" else None)


def test_siblings_are_asked_of_the_silent_traces_whose_step_knows_tokens() -> None:
    asked: list[list[str]] = []

    def ask(steps: Sequence[str]) -> Sequence[Sibling]:
        asked.append(list(steps))
        return ()

    calls = [
        call(step_id="b", **STEP),
        call(step_id="a", **STEP),
        call(id="again", step_id="a", **STEP),
        call(USAGE, step_id="states usage", **STEP),
        call({"error": "busy"}, step_id="states an error", **STEP),
        call(step_id="knows nothing"),
        call(step_id="knows 0", step_prompt_tokens=0, step_completion_tokens=0),
        call(None, step_id="metadata", **METADATA, takes_step_usage=True, **STEP),
    ]
    load(calls, ask_siblings=ask)
    assert asked == [["a", "b"]]
    load(calls[3:], ask_siblings=ask)
    assert asked == [["a", "b"]]


def test_rows_of_one_batch_are_told_apart_by_their_steps() -> None:
    calls = [
        call(step_id="s1", **STEP),
        call(USAGE, id="other", step_id="s2", **STEP),
        call(id="that", step_id="s3", **(STEP | {"step_prompt_tokens": 2_000})),
        call(id="late", step_id="s4", **STEP),
    ]
    siblings = [
        sibling("this", step_id="s1"),
        sibling("that", step_id="s3"),
        sibling("late", 1, step_id="s4"),
        sibling("later", 2, step_id="s4"),
    ]
    rows, _ = load(calls, ask_siblings=lambda _: siblings)
    assert [(row["usage_source"], row["prompt_tokens"]) for row in rows] == [
        ("step", 1_000),
        ("response", 10),
        ("step", 2_000),
        ("none", 0),
    ]


def test_whose_tokens_they_are_does_not_depend_on_the_batch() -> None:
    calls = [
        call(step_id="s", **STEP),
        call({"error": "busy"}, id="that", step_id="s", **STEP),
    ]
    siblings = [
        sibling("this", step_id="s"),
        sibling("that", 1, response=ERROR, step_id="s"),
    ]
    together, _ = load(calls, ask_siblings=lambda _: siblings)
    alone = [load([each], ask_siblings=lambda _: siblings)[0][0] for each in calls]
    assert [row["usage_source"] for row in alone] == ["none", "none"]
    assert [row["usage_source"] for row in together] == ["none", "none"]


@pytest.mark.parametrize(
    ("response", "columns", "source", "prompt"),
    [
        pytest.param(USAGE, STEP, "response", 10, id="the response comes first"),
        pytest.param({"error": "busy"}, STEP, "none", 0, id="a stated error takes none"),
        pytest.param({"usage": {"prompt_tokens": 0}}, STEP, "step", 1_000, id="0 is no usage"),
        pytest.param(
            {"usage": {"prompt_tokens": 10**13}}, STEP, "step", 1_000, id="an unbelievable count"
        ),
        pytest.param("{cut", STEP, "step", 1_000, id="a response that cannot be read"),
        pytest.param(None, STEP, "step", 1_000, id="no response"),
        pytest.param(SILENT, {}, "none", 0, id="a step without tokens"),
    ],
)
def test_the_step_speaks_where_the_response_is_silent(
    response: Any, columns: Row, source: str, prompt: int
) -> None:
    row = row_of(response, **columns)
    assert (row["usage_source"], row["prompt_tokens"]) == (source, prompt)


@pytest.mark.parametrize(
    ("takes", "expected"),
    [(True, ("step", (1_000, 100, 1_100, 7, 0, 40))), (False, ("none", NO_TOKENS))],
)
def test_a_metadata_only_trace_takes_its_steps_tokens_where_the_source_says_so(
    takes: bool, expected: tuple[str, tuple[int | None, ...]]
) -> None:
    more: Row = {"step_cached_input_tokens": 7, "step_cache_write_tokens": 0}
    row = row_of(
        None,
        **METADATA,
        takes_step_usage=takes,
        llm_config=None,
        step_provider="openai",
        step_model="gpt-4o",
        **STEP,
        **more,
        step_reasoning_tokens=40,
    )
    assert (row["usage_source"], tokens(row)) == expected
    assert (row["provider"], row["model"], row["is_error"]) == ("openai", "gpt-4o", 0)
    assert row["cost_usd"] == (COST - 7 * Decimal("1.25") / 10**6 if takes else None)


# --- the accounting of a step ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "counts", "expected"),
    [
        pytest.param(
            "openai",
            (100, 50, 150, 20, None, 30),
            (100, 50, 150, 20, None, 30),
            id="reasoning inside the completion",
        ),
        pytest.param(
            "openai",
            (100, 50, 180, None, None, 30),
            (100, 80, 180, None, None, 30),
            id="reasoning outside it by the total",
        ),
        pytest.param(
            "openai",
            (100, 20, 120, None, None, 30),
            (100, 50, 120, None, None, 30),
            id="more reasoning than completion",
        ),
        *(
            pytest.param(
                provider,
                (100, 50, 180, 10, None, 30),
                (100, 80, 180, 10, None, 30),
                id=f"{provider}: reasoning outside the completion",
            )
            for provider in ("google_ai", "google_vertex")
        ),
        pytest.param(
            "google_ai",
            (100, 50, 220, None, None, 30),
            (140, 80, 220, None, None, 30),
            id="google's total holds what a tool added to the prompt",
        ),
        pytest.param(
            "google_ai",
            (100, 50, 190, None, None, None),
            (140, 50, 190, None, None, None),
            id="the same without reasoning",
        ),
        *(
            pytest.param(
                name, (9, 5, None, None, None, 3), (9, 8, 17, None, None, 3), id=f"{name}: no total"
            )
            for name in ("google_ai", "google_vertex")
        ),
        pytest.param(
            "openai", (100, None, None, None, None, None), (100, 0, 100, None, None, None), id="few"
        ),
        pytest.param(
            "openai", (-5, 50, 45, -1, None, None), (0, 50, 45, None, None, None), id="negative"
        ),
    ],
)
def test_the_counts_of_a_step_are_read_as_its_provider_counts(
    provider: str, counts: tuple[int | None, ...], expected: tuple[int | None, ...]
) -> None:
    step: Row = dict(zip([f"step_{name}" for name in TOKEN_COLUMNS], counts, strict=True))
    row = row_of(llm_config={"model_endpoint_type": provider, "model": "m"}, **step)
    assert (row["usage_source"], tokens(row)) == ("step", expected)


@pytest.mark.parametrize("name", TOKEN_COLUMNS)
def test_a_step_with_a_count_that_no_call_has_is_not_believed(name: str) -> None:
    for count in (10**12 + 1, 2**63 - 1):
        row = row_of(**STEP | {f"step_{name}": count})
        assert (row["usage_source"], tokens(row), row["cost_usd"]) == ("none", NO_TOKENS, None)
    row = row_of(**STEP | {f"step_{name}": 10**12 - 1_000})
    assert (row["usage_source"], row[name]) == ("step", 10**12 - 1_000)


# --- failed steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "columns", "expected"),
    [
        pytest.param(SILENT, FAILED, (1, "llm_api_error", ""), id="nothing more is known"),
        pytest.param(
            SILENT,
            FAILED | {"step_error_type": "TimeoutError", "step_error_data": '{"message": "late"}'},
            (1, "TimeoutError", "late"),
            id="type and message",
        ),
        pytest.param(
            SILENT,
            FAILED | {"step_error_data": '{"error": {"message": "deep"}, "code": 1}'},
            (1, "llm_api_error", "deep"),
            id="a message inside",
        ),
        pytest.param(
            SILENT,
            FAILED | {"step_error_data": '{"code": 1}'},
            (1, "llm_api_error", '{"code": 1}'),
            id="no message",
        ),
        pytest.param(
            SILENT, FAILED | {"step_error_data": '"late"'}, (1, "llm_api_error", "late"), id="text"
        ),
        pytest.param(
            SILENT, FAILED | {"step_error_data": "{cut"}, (1, "llm_api_error", "{cut"), id="no JSON"
        ),
        pytest.param(
            SILENT, {"step_status": "failed"}, (1, "llm_api_error", ""), id="no reason to stop"
        ),
        pytest.param(
            SILENT,
            {"step_status": "failed", "step_stop_reason": "error"},
            (0, "", ""),
            id="another failure than the call's",
        ),
        pytest.param(SILENT, {"step_status": "success"}, (0, "", ""), id="no failure"),
        pytest.param(
            SILENT,
            {"step_status": "success", "step_error_type": "E", "step_error_data": '"e"'},
            (0, "", ""),
            id="an error of a step that went on",
        ),
        pytest.param(
            {"error": "busy", "error_type": "RateLimitError"},
            FAILED | {"step_error_type": "TimeoutError"},
            (1, "RateLimitError", "busy"),
            id="the response's own error comes first",
        ),
        pytest.param(USAGE, FAILED, (0, "", ""), id="a call with usage did not fail"),
    ],
)
def test_a_failed_step_makes_an_error_of_a_call_that_states_none_and_no_usage(
    response: Any, columns: Row, expected: tuple[int, str, str]
) -> None:
    row = row_of(response, **columns)
    assert (row["is_error"], row["error_type"], row["error_message"]) == expected


def test_the_message_of_a_failed_step_is_cut_as_others_are() -> None:
    row = row_of(**FAILED, step_error_data='{"message": "' + "🙂" * 2_000 + '"}')
    assert row["error_message"] == "🙂" * 1_000


def test_of_metadata_only_traces_the_one_that_the_step_is_about_failed() -> None:
    rows = [
        row_of(None, **METADATA, takes_step_usage=takes, **FAILED, **STEP)
        for takes in (True, False)
    ]
    assert [(row["is_error"], row["usage_source"], row["cost_usd"]) for row in rows] == [
        (1, "step", COST),
        (0, "none", None),
    ]


TEXT = {"type": "text", "text": "so"}
TOOL = {"name": "send", "input": {"to": "me"}}


@pytest.mark.parametrize(
    ("response", "cost"),
    [
        pytest.param(None, 0, id="no response"),
        pytest.param({}, 0, id="an empty response"),
        pytest.param(SILENT, 0, id="an empty answer"),
        pytest.param({"content": " \n"}, 0, id="white space"),
        pytest.param({"choices": [{"message": {"content": None}}]}, 0, id="a choice of nothing"),
        pytest.param({"error": "busy", "content": "so"}, 0, id="a stated error"),
        pytest.param({"content": "so"}, None, id="text"),
        pytest.param({"content": [TEXT]}, None, id="anthropic"),
        pytest.param({"choices": [{"message": {"content": "so"}}]}, None, id="openai"),
        pytest.param(
            {"choices": [{"message": {"content": None, "tool_calls": [{"id": "t"}]}}]},
            None,
            id="openai's tools",
        ),
        pytest.param({"output": [{"type": "message", "content": [TEXT]}]}, None, id="responses"),
        pytest.param(
            {"output": [{"type": "function_call", "arguments": "{}"}]}, None, id="a function"
        ),
        pytest.param({"candidates": [{"content": {"parts": [{"text": "so"}]}}]}, None, id="gemini"),
        pytest.param(
            {"candidates": [{"content": {"parts": [{"function_call": TOOL}]}}]},
            None,
            id="gemini's functions",
        ),
        pytest.param({"output": {"message": {"content": [TEXT]}}}, None, id="bedrock converse"),
        pytest.param(
            {"content": {"tool_call": None, "content": ['{"type": "text", "text": "so"}']}},
            None,
            id="the agent server's stream",
        ),
        pytest.param({"content": {"tool_call": None, "content": []}}, 0, id="its empty stream"),
        *(
            pytest.param(response, None, id=id_)
            for id_, response in {
                "anthropic's tools": {"content": [{"type": "tool_use"} | TOOL]},
                "anthropic's thinking": {"content": [{"type": "thinking", "thinking": "so"}]},
                "openai's reasoning": {
                    "choices": [{"message": {"content": None, "reasoning_content": "so"}}]
                },
                "openai's refusal": {"choices": [{"message": {"refusal": "so", "content": None}}]},
                "responses' reasoning": {"output": [{"type": "reasoning", "summary": [TEXT]}]},
                "an event of a stream": {
                    "response": {"output": [{"type": "message", "content": [TEXT]}]}
                },
                "bedrock's tools": {"output": {"message": {"content": [{"toolUse": TOOL}]}}},
                "ollama": {"response": "so"},
                "gemini's images": {
                    "candidates": [{"content": {"parts": [{"inline_data": {"data": "AA=="}}]}}]
                },
                "a response that is cut": '{"content": "so',
            }.items()
        ),
    ],
)
def test_a_failed_call_without_usage_costs_nothing_unless_it_had_answered(
    response: Any, cost: int | None
) -> None:
    columns = {} if isinstance(response, dict) and "error" in response else FAILED
    [row], tally = load([call(response, **columns)])
    assert (row["is_error"], row["usage_source"], row["cost_usd"]) == (1, "none", cost)
    assert tally.unmetered == ({"openai/gpt-4o": 1} if cost is None else {})


def test_a_failed_step_that_knows_its_tokens_is_priced() -> None:
    row = row_of({"content": "so"}, **FAILED, **STEP)
    assert (row["is_error"], row["usage_source"], row["cost_usd"]) == (1, "step", COST)


@pytest.mark.parametrize("count", [10**13, 1.5, -1])
def test_an_error_that_states_usage_that_is_not_believed_is_not_free(count: float) -> None:
    row = row_of({"error": "cut", "usage": {"prompt_tokens": count, "completion_tokens": 9}})
    assert (row["is_error"], row["usage_source"], row["cost_usd"]) == (1, "none", None)


def test_a_compaction_of_a_failed_step_did_not_fail() -> None:
    siblings = [sibling("a", -1), sibling("this", call_type="summarization")]
    row = row_of({"content": "a summary"}, siblings, **FAILED, call_type="summarization")
    assert (row["is_error"], row["cost_usd"]) == (0, None)


# --- rows that came without their payloads --------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, (0, "none", None)),
        (STEP, (0, "step", COST)),
        (STEP | FAILED, (1, "step", COST)),
        pytest.param(
            FAILED,
            (1, "none", None),
            id="the step failed",
        ),
    ],
)
def test_a_row_that_is_too_wide_is_read_from_its_step(
    columns: Row, expected: tuple[int, str, Decimal | None]
) -> None:
    [row], tally = load([call(None, is_too_wide=True, **columns)])
    assert (row["is_error"], row["usage_source"], row["cost_usd"]) == expected
    assert tally.unreadable_ids == ([] if expected[1] == "step" else ["this"])
