"""The cases of every provider, and what no response may do: raise, wrap a number, lose a row."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_trace_pipeline.trace.context import (
    Names,
    read_agent_tags,
    read_billing_context,
    read_names,
)
from llm_trace_pipeline.trace.fast_responses import read_response
from llm_trace_pipeline.trace.responses import ResponseReading
from tests.harness.any_json import ANY_JSON, mutated_responses
from tests.harness.usage_cases import CASES


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def read(response: Any) -> ResponseReading:
    return read_response(as_json(response))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_call_is_read_as_its_provider_means_it(case: dict[str, Any]) -> None:
    call = {name: as_json(value) for name, value in case["call"].items()}
    config = read_names(call["llm_config"])
    response = read_response(call["response_json"])
    actual = response._asdict() | {
        "provider": config.provider,
        "model": config.model or read_names(call["request_json"]).model or response.model,
    }
    no_error = {"error_type": "", "error_message": ""}
    expected = {
        key: no_error.get(key) if value is None else value
        for key, value in case["expected"].items()
    }
    assert {key: actual[key] for key in expected} == expected
    assert response.is_readable == (case["name"] != "adv_huge_int")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "error_type", "message"),
    [
        ({"error": {"code": 429, "message": "m", "status": "GONE"}}, "GONE", "m"),
        ({"error": {"code": 502, "message": "m"}}, "502", "m"),
        ({"error": {"code": "filter", "type": None, "status": 400}}, "filter", ""),
        ({"choices": [{"error": {"code": 502, "message": "m"}}]}, "502", "m"),
        ({"__type": "a.b#Throttling", "message": "m"}, "a.b#Throttling", "m"),
        ({"error": "model not found"}, "", "model not found"),
        ({"error": "", "error_type": "TimeoutError"}, "TimeoutError", ""),
        ({"error": "e", "error_type": 42}, "42", "e"),
        ({"object": "error", "type": "Bad", "message": {"é": [1, None]}}, "Bad", '{"é":[1,null]}'),
        ({"type": "error", "code": "server_error", "message": "m"}, "server_error", "m"),
        ({"type": "error", "error": {"type": "busy", "message": "m"}}, "busy", "m"),
        (
            {"result": {"error": {"type": "error", "error": {"type": "bad", "message": "m"}}}},
            "bad",
            "m",
        ),
        ({"detail": [{"loc": ["body"]}]}, "", '[{"loc":["body"]}]'),
        ({"error": ["x" * 2_000]}, "", '["' + "x" * 2_000 + '"]'),
    ],
)
def test_error_is_found(response: Any, error_type: str, message: str) -> None:
    reading = read(response)
    assert (reading.is_error, reading.error_type, reading.error_message) == (
        True,
        error_type,
        message,
    )


@pytest.mark.parametrize(
    "response",
    [
        {"error": None},
        {"error": False},
        {"error": {}},
        {"error": ""},
        {"error": {"code": None, "message": ""}},
        {"error": None, "error_type": None},
        {"content": "ok", "detail": "high"},
        {"type": "message", "object": "response", "message": "ok"},
    ],
)
def test_no_error_is_invented(response: Any) -> None:
    reading = read(response)
    assert (reading.is_error, reading.error_type, reading.error_message) == (False, "", "")


def test_message_is_cut_at_code_points() -> None:
    assert read({"error": "🙂" * 2_000}).error_message == "🙂" * 2_000  # cut when it is kept


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, -1, 1.5, "-1", "1.0", "²", "9" * 5_000, [1], {"a": 1}])
def test_what_is_no_count_is_absent(value: Any) -> None:
    usage = {"prompt_tokens": value, "completion_tokens": 3, "cached_tokens": value}
    reading = read({"usage": usage})
    assert reading[:4] == (0, 3, 3, None)


@pytest.mark.parametrize("number", ["NaN", "-1e999", "-" + "9" * 5_000])
def test_number_out_of_range_costs_only_itself(number: str) -> None:
    text = f'{{"model": "m", "usage": {{"prompt_tokens": {number}, "completion_tokens": 3}}}}'
    assert read_response(text.encode()) == ResponseReading(0, 3, 3, model="m")


HUGE = [str(10**12 + 1), str(2**63), str(10**30), "Infinity", "1e999", "9" * 5_000, f'"{10**12}1"']


@pytest.mark.parametrize("number", HUGE)
def test_a_count_that_no_call_has_makes_the_usage_unknown(number: str) -> None:
    text = f'{{"model": "m", "usage": {{"prompt_tokens": {number}, "completion_tokens": 3}}}}'
    assert read_response(text.encode()) == ResponseReading(0, 3, 3, model="m", is_readable=False)
    searches = f'{{"web_search_requests": {number}}}'
    text = f'{{"usage": {{"input_tokens": 5, "server_tool_use": {searches}}}}}'
    assert read_response(text.encode()) == ResponseReading(5, 0, 5, is_readable=False)


def test_counts_that_add_up_to_more_than_a_call_has_are_unknown() -> None:
    most = 10**12
    assert read({"usage": {"input_tokens": most}})[:3] == (most, 0, most)
    usage = {"input_tokens": most, "cache_read_input_tokens": most}
    assert read({"usage": usage}) == ResponseReading(is_readable=False)


def test_compaction_is_added_and_other_iterations_are_not() -> None:
    iterations = [
        {"type": "compaction", "input_tokens": 1_000, "output_tokens": 50},
        {"type": "message", "input_tokens": 7, "output_tokens": 3},
        {"type": "compaction", "input_tokens": 0, "cache_creation_input_tokens": 20},
    ]
    usage = {"input_tokens": 7, "output_tokens": 3, "iterations": iterations}
    assert read({"usage": usage})[:6] == (1_027, 53, 1_080, None, 20, None)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ({"usage": {"tokens": {"input_tokens": 71, "output_tokens": 9}}}, (71, 9, 80, None, None)),
        ({"x_groq": {"usage": {"prompt_tokens": 4}}, "usage": None}, (4, 0, 4, None, None)),
        (
            {
                "amazon-bedrock-invocationMetrics": {
                    "inputTokenCount": 4,
                    "outputTokenCount": 2,
                    "cacheReadInputTokenCount": 10,
                    "cacheWriteInputTokenCount": 0,
                }
            },
            (14, 2, 16, 10, 0),
        ),
        ({"usage": {"total_tokens": 10}}, (10, 0, 10, None, None)),
        ({"input_tokens": 2_095}, (0, 0, 0, None, None)),
    ],
    ids=["cohere", "groq_stream", "bedrock_invoke", "voyage", "anthropic_count_tokens"],
)
def test_usage_is_found_in_its_place(response: Any, expected: tuple[int | None, ...]) -> None:
    assert read(response)[:5] == expected


# --- any JSON, and what is none -------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(ANY_JSON | mutated_responses())
@example({"choices": [{"error": {}, "detail": "d", "error_type": "t"}]})
@example({"prompt_eval_count": 1, "": 1, "iterations": [{"type": "compaction", "eval_count": 1}]})
def test_any_json_is_read_alike_by_both_paths(response: Any) -> None:
    reading = read(response)
    counts = (reading.prompt_tokens, reading.completion_tokens, reading.total_tokens)
    subsets = (
        reading.cached_input_tokens,
        reading.cache_write_tokens,
        reading.reasoning_tokens,
    )
    assert all(type(count) is int and 0 <= count <= 10**12 for count in counts)
    assert all(count is None or (type(count) is int and 0 <= count <= 10**12) for count in subsets)
    assert reading.is_error or reading.error_type == reading.error_message == ""
    for text in (reading.error_type, reading.error_message, reading.model):
        text.encode()
    if isinstance(response, dict):
        # msgspec refuses the lone surrogate, wherever it stands
        assert read(response | {"ignored": "\ud83d"}) == reading


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | ANY_JSON.map(as_json))
def test_no_text_makes_a_reader_raise(text: bytes) -> None:
    read_response(text)
    for value in (*read_names(text), *read_agent_tags(text)):
        value.encode()
    "".join(read_billing_context(text) or ()).encode()


def test_lone_surrogates_are_replaced_and_pairs_are_kept() -> None:
    text = (
        b'{"error": "bad \\ud83d half \\u0000", "error_type": "\\ud83d\\ude42", "model": "\\udc00"}'
    )
    reading = read_response(text)
    assert reading.error_message == "bad \ufffd half \0"
    assert reading.error_type == "🙂"
    assert reading.model == "\ufffd"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": "\xff"}',
        b"[" * 100_000,
        b'{"usage": ' + b'{"a":' * 100_000,
        b'{"ignored": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["empty", "cut", "no_json", "no_utf8", "deep_list", "deep_usage", "deep_ignored"],
)
def test_unreadable_text_is_reported(text: bytes) -> None:
    assert read_response(text) == ResponseReading(is_readable=False)
    assert read_names(text) == Names("", "", "")
    assert read_agent_tags(text) == []
    assert read_billing_context(text) is None


def test_error_too_deep_to_be_written_is_still_an_error() -> None:
    readings = [
        read_response(b'{"error_type": "E", "error": ' + b"[" * depth + b"]" * depth + b"}")
        for depth in range(700, 1_000)
    ]
    readable = [reading for reading in readings if reading.is_readable]
    assert readable
    assert all((reading.is_error, reading.error_type) == (True, "E") for reading in readable)


@pytest.mark.parametrize("text", [b"null", b'"text"', b"[1]", b"12", b"true"])
def test_json_that_is_no_object_is_readable(text: bytes) -> None:
    assert read_response(text) == ResponseReading()
    assert read_response(memoryview(text)) == ResponseReading()


# --- config, request, tags, billing ---------------------------------------------------------------


def test_config_and_request_ignore_what_is_no_string() -> None:
    config = {"model_endpoint_type": None, "model": 4, "provider_category": "byok"}
    assert read_names(as_json(config)) == Names("", "", "byok")
    assert read_names(memoryview(b'{"messages": ["\\ud83d"], "model": "m"}')).model == "m"
    assert read_names(b'{"model": {"id": "m"}}').model == ""


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (None, []),
        ({"a": 1}, []),
        ("a", []),
        ([], []),
        (["b", None, "", "a", "b"], ["b", "", "a", "b"]),
        ([1, True, 1.5, {"é": [None]}, "\udc00"], ["1", "true", "1.5", '{"é":[null]}', "\ufffd"]),
    ],
)
def test_agent_tags(tags: Any, expected: list[str]) -> None:
    assert read_agent_tags(as_json(tags)) == expected


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"plan_type": "", "cost_source": None, "customer_id": {}}, None),
        ({"plan_type": True, "other": "x"}, None),
        ({"plan_type": "pro"}, ("pro", "", "")),
        ({"plan_type": "", "cost_source": None, "customer_id": 17}, ("", "", "17")),
        (
            {"plan_type": "pro", "cost_source": "quota", "customer_id": "cus_1"},
            ("pro", "quota", "cus_1"),
        ),
    ],
)
def test_billing_context(context: Any, expected: tuple[str, str, str] | None) -> None:
    assert read_billing_context(as_json(context)) == expected
