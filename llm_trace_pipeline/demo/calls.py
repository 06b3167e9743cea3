"""The demo's calls: who asks which model, when, and what the server stores of it.

The rows of an hour depend on that hour alone, so any part of it can be added later. Every step is
created at the time of its first trace: one cut in time is then a cut in all tables.
"""

import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import accumulate

import msgspec

from llm_trace_pipeline.demo.chance import chance, fixed_uuid, generator, passage, random_uuid
from llm_trace_pipeline.demo.customers import ORGANIZATIONS, Agent, agents
from llm_trace_pipeline.demo.responses import (
    CANCELLED,
    RECIPES,
    TOOLS,
    Call,
    Json,
    Recipe,
    Tokens,
    server_error,
    streamed,
    summarized,
)

_HOUR_US = 3_600_000_000
_MEAN_TRACES = 770  # an hour, over a day
_BUSIEST_HOUR = 15  # UTC
_HUGE_HOUR = 15  # one call of this hour carries a long document
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
    rng, at = call.rng, call.at
    call_types = ("agent_step", "summarization", "tool_generation", None)
    call_type = rng.choices(call_types, (86, 8, 4, 2))[0]
    is_byok = agent.organization.is_byok
    has_step = not chance(rng, 0.01)
    step_id = f"step-{random_uuid(rng)}"
    trace: Json = {
        "id": f"provider_trace-{random_uuid(rng)}",
        "step_id": step_id if has_step or chance(rng, 0.5) else None,
        "agent_id": agent.id if call_type else None,
        "agent_tags": None if agent.tags is None else _text(agent.tags),
        "call_type": call_type,
        "run_id": run[0],
        "source": "lettuce-py" if chance(rng, 0.1) else "memgpt-server",
        "org_id": None if chance(rng, 0.05) else agent.organization.id,
        "user_id": agent.user_id,
        "organization_id": agent.organization.id,
        "created_at": at,
        "updated_at": at,
        "is_deleted": chance(rng, 0.005),
    }
    fails = chance(rng, 0.03)
    is_cancelled = fails and chance(rng, 0.15)
    if has_step and chance(rng, 0.03):
        rows["provider_trace_metadata"].append(trace)
    else:
        if fails:
            failure = server_error if chance(rng, 0.6) else recipe.dialect.failure
            response = CANCELLED if is_cancelled else failure(call)
        elif call_type == "summarization" and recipe.provider == "anthropic":
            response = summarized(call)
        else:
            usage = recipe.dialect.usage(call.tokens)
            is_streamed = recipe.streams and chance(rng, 0.35)
            response = (streamed if is_streamed else recipe.dialect.body)(call, usage)
        category = "byok" if is_byok and chance(rng, 0.7) else None if is_byok else "base"
        config = None if chance(rng, 0.02) else _text(_llm_config(recipe, category))
        compacts = call_type == "summarization"
        trace |= {
            "request_json": _text(recipe.dialect.request(call)),
            "response_json": _text(response),
            "llm_config": config,
            "compaction_settings": '{"mode":"sliding_window"}' if compacts else None,
            "billing_context": _text(_billing_context(agent)) if chance(rng, 0.01) else None,
        }
        rows["provider_traces"].append(trace)
        if fails and not is_cancelled and chance(rng, 0.5):
            # The step was tried once more, and that worked.
            fails = False
            later = at + timedelta(microseconds=rng.randrange(500_000, 20_000_000))
            later = min(later, at.replace(minute=59, second=59, microsecond=999_999))
            usage = recipe.dialect.usage(call.tokens)
            retry = {
                "id": f"provider_trace-{random_uuid(rng)}",
                "created_at": later,
                "updated_at": later,
            }
            retry["response_json"] = _text(recipe.dialect.body(call, usage))
            rows["provider_traces"].append(trace | retry)
    if not has_step:
        return
    tokens = Tokens(0, 0, None, None, None) if fails else call.tokens
    step = {
        "id": step_id,
        "organization_id": agent.organization.id,
        "project_id": agent.project_id,
        "trace_id": run[1],
        "provider_name": recipe.provider,
        "provider_category": "byok" if is_byok else "base",
        "model": call.model,
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.total,
        "cached_input_tokens": tokens.cached,
        "cache_write_tokens": tokens.written,
        "reasoning_tokens": tokens.reasoning,
        "created_at": at,
        "updated_at": at + timedelta(microseconds=rng.randrange(900_000)),
    }
    rows["steps"].append(step)
    if not chance(rng, 0.06):
        nanoseconds = int(rng.lognormvariate(21.5, 0.7))  # about 2 s
        metrics = {"id": step_id, "created_at": at, "updated_at": step["updated_at"]}
        metrics["llm_request_ns"] = None if chance(rng, 0.03) else nanoseconds
        rows["step_metrics"].append(metrics)


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
    if recipe.model.startswith("text-embedding"):
        completion = 0
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


def _llm_config(recipe: Recipe, category: str | None) -> Json:
    return {
        "model": recipe.model,
        "model_endpoint_type": recipe.endpoint_type,
        "model_endpoint": f"https://api.{recipe.provider}.example/v1",
        "provider_name": recipe.provider,
        "provider_category": category,
        "model_wrapper": None,
        "context_window": 128000,
        "put_inner_thoughts_in_kwargs": False,
        "handle": f"{recipe.provider}/{recipe.model}",
        "temperature": 1.0,
        "max_tokens": 8192,
        "enable_reasoner": "r" in recipe.dialect.reports,
    }


def _billing_context(agent: Agent) -> Json:
    customer = f"cus_{fixed_uuid('request', agent.organization.rank).hex[:14]}"
    return {"plan_type": "enterprise", "cost_source": "credits", "customer_id": customer}


def _text(value: Json | Sequence[str]) -> str:
    return msgspec.json.encode(value).decode()
