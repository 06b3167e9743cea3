"""The demo's rows: 25 organizations with their billing, and what the server stores of their calls.

The rows of an hour depend on that hour alone, so any part of it can be added later. Every step is
created at the time of its first trace: one cut in time is then a cut in all tables.
"""

import math
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from random import Random

from llm_trace_pipeline.demo import responses
from llm_trace_pipeline.demo.responses import Json, fill, json_text
from llm_trace_pipeline.demo.text import chance, fixed_uuid, passage, random_uuid, seeded

# Organizations are numbered from the one with the most calls to the one with the fewest.
ORGANIZATIONS = range(25)
CHANGES_PLAN = 1
WITHOUT_BILLING = (11, 20)
_OWN_KEYS = (3, 8, 14)  # the organizations that bring their own keys to the providers
_PLANS = ("team", "pro", "enterprise", "free")
_TAGS = (None, "[]", '["production"]', '["support","eu"]', '["batch","internal","v2"]')
# The billing details that come with a request are not those of the organization.
_OWN_BILLING = '{"plan_type":"enterprise","cost_source":"credits","customer_id":"cus_of_request"}'

_MEAN_CALLS = 770  # an hour, over a day
_BUSIEST_HOUR = 15  # UTC; one call of this hour carries a long document
_ORGANIZATION_WEIGHTS = [(number + 1) ** -1.1 for number in ORGANIZATIONS]
_RECIPE_WEIGHTS = [recipe.weight for recipe in responses.RECIPES]


def organization_id(number: int) -> str:
    """Return the id of an organization in the traces."""
    return f"org-{fixed_uuid('organization', number)}"


def billing_details(
    first_hour: datetime, organizations: Iterable[int] = ORGANIZATIONS
) -> list[Json]:
    """Return the rows of the billing table for traffic that begins with this hour.

    `CHANGES_PLAN` has two rows: on the demo's second day it gets another plan.
    """
    rows: dict[int, Json] = {}
    for number in set(organizations).difference(WITHOUT_BILLING):
        plan = _PLANS[number % len(_PLANS)]
        customer = f"cus_{fixed_uuid('customer', number).hex[:14]}"
        rows[number] = {
            "organization_id": organization_id(number),
            "plan_type": plan,
            "cost_source": "quota" if number % 3 else "credits",
            "stripe_customer_id": None if plan == "free" else customer,
            "created_at": first_hour - timedelta(days=90 + number),
        }
    changes_at = (first_hour + timedelta(days=1)).replace(hour=13, minute=37)
    change = {"plan_type": "enterprise", "updated_at": changes_at}
    return [*rows.values(), rows[CHANGES_PLAN] | change]


def rows_of_hour(hour: datetime) -> dict[str, list[Json]]:
    """Return the rows of an hour, by the name of their table; JSON is text."""
    rng = seeded(f"hour {hour:%Y-%m-%dT%H}")
    wave = 1 + 0.5 * math.cos((hour.hour - _BUSIEST_HOUR) / 24 * math.tau)
    count = round(_MEAN_CALLS * wave * rng.uniform(0.95, 1.05))
    rows: dict[str, list[Json]] = {}
    # Never at the very start or end of the hour, and no two at once.
    for number, microseconds in enumerate(sorted(rng.sample(range(1, 3_600_000_000), count))):
        is_long = hour.hour == _BUSIEST_HOUR and number == count // 2
        asked = 360_000 if is_long else int(rng.lognormvariate(6.7, 0.7))
        for table, row in _rows_of_call(rng, hour + timedelta(microseconds=microseconds), asked):
            rows.setdefault(table, []).append(row)
    return rows


def _rows_of_call(rng: Random, at: datetime, asked: int) -> Iterator[tuple[str, Json]]:
    """Yield the names of tables and the rows that the server keeps of a call in them."""
    [recipe] = rng.choices(responses.RECIPES, _RECIPE_WEIGHTS)
    [number] = rng.choices(ORGANIZATIONS, _ORGANIZATION_WEIGHTS)
    agent = (number, rng.randrange(5))
    system = passage(seeded(f"agent {agent}"), 500)
    call = responses.draw_call(rng, recipe, system, asked, int(rng.lognormvariate(5.6, 0.7)))
    failure = rng.choice((*responses.ERRORS, responses.CANCELLED)) if chance(rng, 0.03) else None
    category = "byok" if number in _OWN_KEYS else "base"
    is_in_agent = not chance(rng, 0.02)
    has_step = is_in_agent and not chance(rng, 0.01)
    step_id = f"step-{random_uuid(rng)}"
    run = (*agent, int(at.timestamp()) // 600)  # of an agent's calls in 10 minutes
    times = {"created_at": at, "updated_at": at}
    trace: Json = times | {
        "id": f"provider_trace-{random_uuid(rng)}",
        "agent_id": f"agent-{fixed_uuid('agent', *agent)}" if is_in_agent else None,
        "agent_tags": _TAGS[sum(agent) % len(_TAGS)],
        "call_type": recipe.call_type if is_in_agent else None,
        "run_id": f"run-{fixed_uuid('run', *run)}",
        "step_id": step_id if is_in_agent else None,
        "source": "memgpt-server",
        "org_id": None if chance(rng, 0.05) else organization_id(number),
        "user_id": f"user-{fixed_uuid('user', *agent)}",
        "organization_id": organization_id(number),
        "is_deleted": chance(rng, 0.005),
    }
    handle = f"{recipe.provider}/{recipe.model}"
    config = {
        "model": recipe.model,
        "model_endpoint_type": recipe.endpoint_type or recipe.provider,
        "provider_name": recipe.provider,
        "provider_category": category,
        "handle": handle,
        "context_window": 128000,
    }
    if has_step and chance(rng, 0.03):
        failure = None
        yield "provider_trace_metadata", trace
    else:
        trace |= {
            "request_json": fill(recipe.request, call),
            "response_json": fill(failure or recipe.response, call),
            "llm_config": None if chance(rng, 0.02) else json_text(config),
            "billing_context": _OWN_BILLING if chance(rng, 0.01) else None,
        }
        yield "provider_traces", trace
    if failure in responses.ERRORS and chance(rng, 0.5):
        failure = None  # of a second try of the step
        later = at + timedelta(microseconds=rng.randrange(500_000, 20_000_000))
        later = min(later, at.replace(minute=59, second=59, microsecond=999_999))
        again: Json = {"id": f"provider_trace-{random_uuid(rng)}", "created_at": later}
        again |= {"updated_at": later, "response_json": fill(recipe.response, call)}
        yield "provider_traces", trace | again
    if not has_step:
        return
    status, stop_reason = "SUCCESS", "end_turn"
    if failure:
        status, stop_reason = "FAILED", "llm_api_error"
    if failure == responses.CANCELLED:
        status, stop_reason = "CANCELLED", "cancelled"
    step = responses.step_counts({} if failure else call) | {
        "id": step_id,
        "organization_id": organization_id(number),
        "project_id": str(fixed_uuid("project", number, agent[1] // 2)),
        "trace_id": fixed_uuid("trace", *run).hex,
        "provider_name": recipe.provider,
        "provider_category": category,
        "model": recipe.model,
        "model_handle": handle,
        "status": status,
        "stop_reason": stop_reason,
        "created_at": at,
        "updated_at": at + timedelta(microseconds=rng.randrange(900_000)),
    }
    yield "steps", step
    if not chance(rng, 0.06):
        nanoseconds = None if chance(rng, 0.03) else int(rng.lognormvariate(21.5, 0.7))  # about 2 s
        yield "step_metrics", times | {"id": step_id, "llm_request_ns": nanoseconds}
