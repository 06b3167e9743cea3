"""What is known of the calls of a batch: by their responses, and else by their steps.

A step knows the tokens of its agent's call, and whether the call failed. The server may keep the
trace of a broken stream as a success without usage, and the trace of a metadata-only deployment
has no response at all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from llm_trace_pipeline.trace.columns import TOKEN_COLUMNS
from llm_trace_pipeline.trace.details import UNMETERED, HugeCountError, text_of_details
from llm_trace_pipeline.trace.fast_responses import read_response
from llm_trace_pipeline.trace.json_values import Object, object_of, parse, text_of
from llm_trace_pipeline.trace.responses import ResponseReading, UsageSource, holds_answer
from llm_trace_pipeline.trace.usage import Tokens, usage_in

Sibling = Mapping[str, Any]  # a row of sql/operational/siblings.sql
Columns = dict[str, Sequence[Any]]  # by the fields of a ResponseReading
AskSiblings = Callable[[Sequence[str]], Sequence[Sibling]]

_NO_RESPONSE: Final = ResponseReading()
_NOT_SENT: Final = ResponseReading(is_readable=False)
_STEP_TOKENS: Final = [f"step_{name}" for name in TOKEN_COLUMNS]
_STEP_ERROR: Final = ["step_status", "step_stop_reason", "step_error_type", "step_error_data"]
_FAILED: Final = "llm_api_error"  # the stop reason of a step whose call failed
# Their own accounting, and so the step's, leaves reasoning out of the completion.
_GOOGLE: Final = ("google_ai", "google_vertex")
_MAIN_CALL: Final = "agent_step"
_ANY: Final = msgspec.json.Decoder()


def no_siblings(_: Sequence[str]) -> Sequence[Sibling]:
    """Know of no other trace of any step."""
    return ()


def as_columns(calls: Sequence[ResponseReading]) -> Columns:
    """Return readings as one column for every field."""
    fields = ResponseReading._fields
    return dict(zip(fields, zip(*calls, strict=True) if calls else [()] * len(fields), strict=True))


def read_calls(
    source: pa.RecordBatch,
    responses: Sequence[bytes],
    providers: Sequence[str],
    ask_siblings: AskSiblings,
) -> list[ResponseReading]:
    """Read the responses of rows of ``sql/operational/traces.sql``, and their steps where needed.

    Args:
        source: the rows.
        responses: the text of the response of every row, '' where it has none.
        providers: the provider of every row.
        ask_siblings: returns all traces of some steps.
    """
    calls = [read_response(text) if text else _NO_RESPONSE for text in responses]
    for row in pc.indices_nonzero(source.column("is_too_wide")).to_pylist():
        calls[row] = _NOT_SENT
    silent = [row for row, call in enumerate(calls) if call.usage_source == "none"]
    if not silent:
        return calls
    steps = _steps_of(source, silent, providers)
    takers = _takers(source, silent, steps, calls, ask_siblings)
    for row in silent:
        step = steps[row]
        if step.is_failed and not calls[row].is_error:
            calls[row] = _failed(calls[row], step, responses[row])
        if row in takers and step.tokens:
            calls[row] = _with_tokens(calls[row], step.tokens)
    return calls


def reread_call(text: bytes, size: int, tokens: tuple[int | None, ...]) -> ResponseReading:
    """Read the response of a row of a batch anew, as far as it was kept.

    Args:
        text: the response, '' where it was not kept.
        size: octets of the response in the source; 0: the trace was metadata-only.
        tokens: the row's, in the order of ``TOKEN_COLUMNS``.
    """
    call = read_response(text) if text else _NO_RESPONSE
    if call[: len(tokens)] == tokens:
        return call
    is_known = any(tokens[:2])
    source: UsageSource = ("response" if size else "step") if is_known else "none"
    return ResponseReading(model=call.model, usage_source=source)


class _Step(NamedTuple):
    """What a step knows of the call of a row."""

    tokens: Tokens | None  # None: none, or no believable ones
    is_failed: bool  # its call failed, and the row is of that call
    error_type: str
    error_data: str


def _steps_of(
    source: pa.RecordBatch, rows: Sequence[int], providers: Sequence[str]
) -> dict[int, _Step]:
    names = [*_STEP_TOKENS, *_STEP_ERROR, "is_metadata_only", "takes_step_usage", "call_type"]
    steps = {}
    for row, step in zip(rows, source.select(names).take(pa.array(rows)).to_pylist(), strict=True):
        # A metadata-only trace may share the step with the trace that the step is about.
        is_owner = step["takes_step_usage"] or not step["is_metadata_only"]
        tokens = _step_tokens([step[name] for name in _STEP_TOKENS], providers[row])
        steps[row] = _Step(
            tokens if is_owner else None,
            is_owner
            and (step["call_type"] or _MAIN_CALL) == _MAIN_CALL
            and _is_failed(step["step_status"], step["step_stop_reason"]),
            step["step_error_type"] or "",
            step["step_error_data"] or "",
        )
    return steps


def _is_failed(status: str | None, stop_reason: str | None) -> bool:
    """Whether the call of a step failed; a step whose tool failed has another stop reason."""
    return stop_reason == _FAILED or (not stop_reason and status == "failed")


def _step_tokens(counts: Sequence[int | None], provider: str) -> Tokens | None:
    """Read the counts of a step, in the order of ``TOKEN_COLUMNS``; None: it knows none.

    A step's columns mean the same as OpenAI's usage object, but that reasoning may stand outside
    the completion. The total then tells what a tool added to the prompt.
    """
    prompt, completion, total, cached, written, reasoning = counts
    if provider in _GOOGLE or (reasoning or 0) > (completion or 0):
        completion = (completion or 0) + (reasoning or 0)
        prompt = max(prompt or 0, (total or 0) - completion)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    try:
        tokens = usage_in([{"usage": usage}]).tokens
    except HugeCountError:
        return None
    return tokens if tokens[0] or tokens[1] else None


def _takers(
    source: pa.RecordBatch,
    silent: Sequence[int],
    steps: Mapping[int, _Step],
    calls: Sequence[ResponseReading],
    ask_siblings: AskSiblings,
) -> set[int]:
    """Return the rows that take their step's tokens.

    A metadata-only trace takes them where the source says so. A whole trace takes them if it is the
    step's main call and no other trace of the step states usage.
    """
    knowing = [row for row in silent if steps[row].tokens and not calls[row].is_error]
    if not knowing:
        return set()
    few = source.select(["id", "step_id", "is_metadata_only"]).take(pa.array(knowing)).to_pylist()
    whole = {
        row: (trace["step_id"], trace["id"])
        for row, trace in zip(knowing, few, strict=True)
        if not trace["is_metadata_only"]
    }
    takers = set(knowing) - whole.keys()
    asked = {step_id for step_id, _ in whole.values()}
    by_step: dict[str, list[Sibling]] = {step_id: [] for step_id in asked}
    for sibling in ask_siblings(sorted(asked)) if asked else ():
        by_step[sibling["step_id"]].append(sibling)
    return takers | {
        row for row, (step_id, id_) in whole.items() if _is_taker(id_, by_step[step_id])
    }


def _is_taker(trace: str, siblings: Sequence[Sibling]) -> bool:
    main = [each for each in siblings if each["call_type"] == _MAIN_CALL] or siblings
    latest = max(main, key=lambda each: (each["created_at"], each["id"]), default=None)
    if latest and latest["id"] != trace:
        return False
    return not any(
        read_response(each["response_json"].encode()).usage_source == "response"
        for each in main
        if each["response_json"] and each["id"] != trace
    )


def _with_tokens(response: ResponseReading, tokens: Tokens) -> ResponseReading:
    prompt, completion, total, cached, written, reasoning = tokens
    return response._replace(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        usage_source="step",
        is_readable=True,
    )


def _failed(response: ResponseReading, step: _Step, text: bytes) -> ResponseReading:
    """Return the reading of a call that only its step knows to have failed.

    What a broken stream had answered until then was billed, and nobody says how much.
    """
    answered = holds_answer(text) if text and response.is_readable else not response.is_readable
    data = parse(_ANY, step.error_data.encode()) if step.error_data else None
    message = _message_in(object_of(data)) or (data if isinstance(data, str) else None)
    return response._replace(
        is_error=True,
        error_type=step.error_type or _FAILED,
        error_message=text_of(message) or step.error_data,
        usage_details=text_of_details({UNMETERED: 1} if answered else {}),
    )


def _message_in(error: Object) -> object:
    for key in ("message", "error_message", "error", "detail", "details"):
        if value := error.get(key):
            return _message_in(value) or value if isinstance(value, dict) else value
    return None
