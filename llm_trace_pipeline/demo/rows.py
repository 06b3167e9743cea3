"""The demo's calls: who asks which model, when, and what the server stores of it.

The rows of an hour depend on that hour alone, so any part of it can be added later. Every step is
created at the time of its first trace: one cut in time is then a cut in all tables.
"""

import math
import random
from datetime import datetime, timedelta
from itertools import accumulate

from llm_trace_pipeline.demo.chance import chance, fixed_uuid, generator, passage, random_uuid
from llm_trace_pipeline.demo.customers import ORGANIZATIONS, Agent, agents
from llm_trace_pipeline.demo.requests import TOOLS, Call, Json, Tokens, json_text
from llm_trace_pipeline.demo.responses import (
    CANCELLED,
    RECIPES,
    Recipe,
    server_error,
    streamed,
    summarized,
)

_HOUR_US = 3_600_000_000
_MEAN_TRACES = 770  # an hour, over a day
_BUSIEST_HOUR = 15  # UTC
_HUGE_HOUR = 15  # one call of this hour carries a long document
_CALL_TYPES = {"agent_step": 86, "summarization": 8, "tool_generation": 4, None: 2}  # per cent
_NO_TOKENS = Tokens(0, 0, None, None, None)
_TABLES = ("provider_traces", "provider_trace_metadata", "steps", "step_metrics")
_ORGANIZATION_WEIGHTS = list(accumulate((each.rank + 1) ** -1.1 for each in ORGANIZATIONS))
_RECIPE_WEIGHTS = list(accumulate(recipe.weight for recipe in RECIPES))


def rows_of_hour(hour: datetime) -> dict[str, list[Json]]:
    """Return the rows of an hour, by the name of their table; JSON is text."""
    rng = generator(f"hour {hour:%Y-%m-%dT%H}")
    wave = 1 + 0.5 * math.cos((hour.hour - _BUSIEST_HOUR) / 24 * math.tau)
    count = round(_MEAN_TRACES * wave * rng.uniform(0.95, 1.05))
    rows: dict[str, list[Json]] = {table: [] for table in _TABLES}
    runs: dict[str, tuple[str, str]] = {}
    # Never at the very start or end of the hour, and no two at once.
    for number, offset in enumerate(sorted(rng.sample(range(1, _HOUR_US), count))):
        organization = rng.choices(ORGANIZATIONS, cum_weights=_ORGANIZATION_WEIGHTS)[0]
        agent = rng.choice(agents()[organization.rank])
        if agent.id not in runs or chance(rng, 0.3):
            runs[agent.id] = (f"run-{random_uuid(rng)}", random_uuid(rng).hex)
        is_huge = hour.hour == _HUGE_HOUR and number == count // 2
        recipe = rng.choices(RECIPES, cum_weights=_RECIPE_WEIGHTS)[0]
        call = _call(rng, agent, recipe, hour + timedelta(microseconds=offset), is_huge)
        _add_step(rows, agent, runs[agent.id], recipe, call)
    return rows


def _add_step(
    rows: dict[str, list[Json]], agent: Agent, run: tuple[str, str], recipe: Recipe, call: Call
) -> None:
    """Add a step with its traces and its metrics, as far as the server kept them."""
    rng, run_id, trace_id = call.rng, *run
    step_id = f"step-{random_uuid(rng)}"
    has_step = not chance(rng, 0.01)
    fails = chance(rng, 0.03)
    trace = _trace(agent, call) | {"run_id": run_id}
    trace["step_id"] = step_id if has_step or chance(rng, 0.5) else None
    if has_step and chance(rng, 0.03):
        rows["provider_trace_metadata"].append(trace)
    else:
        response = _failure(recipe, call) if fails else _answer(recipe, call, trace["call_type"])
        trace |= _payloads(agent, recipe, call) | {"response_json": json_text(response)}
        rows["provider_traces"].append(trace)
        if fails and response != CANCELLED and chance(rng, 0.5):
            fails = False
            rows["provider_traces"].append(trace | _second_try(recipe, call))
    if not has_step:
        return
    step = _step(agent, recipe, call, _NO_TOKENS if fails else call.tokens)
    rows["steps"].append(step | {"id": step_id, "trace_id": trace_id})
    if not chance(rng, 0.06):
        nanoseconds = int(rng.lognormvariate(21.5, 0.7))  # about 2 s
        metrics = {"id": step_id, "llm_request_ns": None if chance(rng, 0.03) else nanoseconds}
        times = {name: step[name] for name in ("created_at", "updated_at")}
        rows["step_metrics"].append(metrics | times)


def _trace(agent: Agent, call: Call) -> Json:
    """Return the columns that both trace tables have."""
    rng = call.rng
    [call_type] = rng.choices(list(_CALL_TYPES), list(_CALL_TYPES.values()))
    return {
        "id": f"provider_trace-{random_uuid(rng)}",
        "agent_id": agent.id if call_type else None,
        "agent_tags": None if agent.tags is None else json_text(agent.tags),
        "call_type": call_type,
        "source": "lettuce-py" if chance(rng, 0.1) else "memgpt-server",
        "org_id": None if chance(rng, 0.05) else agent.organization.id,
        "user_id": agent.user_id,
        "organization_id": agent.organization.id,
        "created_at": call.at,
        "updated_at": call.at,
        "is_deleted": chance(rng, 0.005),
    }


def _answer(recipe: Recipe, call: Call, call_type: str | None) -> Json:
    if call_type == "summarization" and recipe.provider == "anthropic":
        return summarized(call)
    is_streamed = recipe.streams and chance(call.rng, 0.35)
    body = streamed if is_streamed else recipe.dialect.body
    return body(call, recipe.dialect.usage(call.tokens))


def _failure(recipe: Recipe, call: Call) -> Json:
    if chance(call.rng, 0.15):
        return CANCELLED
    return (server_error if chance(call.rng, 0.6) else recipe.dialect.failure)(call)


def _second_try(recipe: Recipe, call: Call) -> Json:
    """Return the columns that differ in the trace of a second try, which succeeds."""
    later = call.at + timedelta(microseconds=call.rng.randrange(500_000, 20_000_000))
    later = min(later, call.at.replace(minute=59, second=59, microsecond=999_999))
    return {
        "id": f"provider_trace-{random_uuid(call.rng)}",
        "created_at": later,
        "updated_at": later,
        "response_json": json_text(recipe.dialect.body(call, recipe.dialect.usage(call.tokens))),
    }


def _payloads(agent: Agent, recipe: Recipe, call: Call) -> Json:
    """Return the columns of JSON, but for the response; a metadata-only trace has none of them."""
    rng, organization = call.rng, agent.organization
    config: Json = {
        "model": recipe.model,
        "model_endpoint_type": recipe.endpoint_type,
        "model_endpoint": f"https://api.{recipe.provider}.example/v1",
        "provider_name": recipe.provider,
        "provider_category": "byok" if organization.is_byok else "base",
        "context_window": 128000,
        "handle": f"{recipe.provider}/{recipe.model}",
        "temperature": 1.0,
        "max_tokens": 8192,
        "enable_reasoner": "r" in recipe.dialect.reports,
    }
    if organization.is_byok and chance(rng, 0.3):
        config["provider_category"] = None  # the step alone tells
    billing = {
        "plan_type": "enterprise",
        "cost_source": "credits",
        "customer_id": f"cus_{fixed_uuid('request', organization.rank).hex[:14]}",
    }
    return {
        "request_json": json_text(recipe.dialect.request(call)),
        "llm_config": None if chance(rng, 0.02) else json_text(config),
        "billing_context": json_text(billing) if chance(rng, 0.01) else None,
    }


def _step(agent: Agent, recipe: Recipe, call: Call, tokens: Tokens) -> Json:
    return {
        "organization_id": agent.organization.id,
        "project_id": agent.project_id,
        "provider_name": recipe.provider,
        "provider_category": "byok" if agent.organization.is_byok else "base",
        "model": call.model,
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.total,
        "cached_input_tokens": tokens.cached,
        "cache_write_tokens": tokens.written,
        "reasoning_tokens": tokens.reasoning,
        "created_at": call.at,
        "updated_at": call.at + timedelta(microseconds=call.rng.randrange(900_000)),
    }


def _call(rng: random.Random, agent: Agent, recipe: Recipe, at: datetime, is_huge: bool) -> Call:
    asked = int(rng.lognormvariate(6.6, 0.7))
    if chance(rng, 0.003):
        asked = rng.randrange(20_000, 90_000)
    if is_huge:
        asked = rng.randrange(300_000, 420_000)
    turns = rng.choice((1, 1, 3, 3, 5, 7))
    messages = [passage(rng, asked // turns) for _ in range(turns)]
    reply = passage(rng, int(rng.lognormvariate(5.6, 0.7)))
    reports = recipe.dialect.reports
    prompt = (len(agent.system) + asked) // 4 + rng.randrange(50, 600)
    cached = int(prompt * rng.choice((0, 0, 0.5, 0.8))) if "c" in reports else None
    written = int(prompt * rng.choice((0, 0.1, 0.19))) if "w" in reports else None
    reasoning = rng.choice((0, rng.randrange(50, 2000))) if "r" in reports else None
    completion = len(reply) // 4 + rng.randrange(1, 40) + (reasoning or 0)
    return Call(
        rng=rng,
        key=random_uuid(rng).hex,
        at=at,
        model=recipe.model,
        system=agent.system,
        messages=messages,
        reply=reply,
        tool=rng.choice(TOOLS) if chance(rng, 0.4) else None,
        tokens=Tokens(prompt, completion, cached, written, reasoning),
    )
