"""The demo's traffic: who calls which model, when, and what is stored of it.

The traffic of an hour is a pure function of the hour, so that any part of it can be added later.
Every step is created at the time of its first trace: one cut in time is then a cut in all tables.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import accumulate
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
import pyarrow as pa

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
_CORPUS_CHARACTERS = 4_000_000

_TIME = pa.timestamp("us", "UTC")
_TRACE_COLUMNS = {
    "id": pa.string(),
    "step_id": pa.string(),
    "agent_id": pa.string(),
    "agent_tags": pa.string(),
    "call_type": pa.string(),
    "run_id": pa.string(),
    "source": pa.string(),
    "org_id": pa.string(),
    "user_id": pa.string(),
    "organization_id": pa.string(),
    "created_at": _TIME,
    "updated_at": _TIME,
    "is_deleted": pa.bool_(),
}
_PAYLOADS = (
    "request_json",
    "response_json",
    "compaction_settings",
    "llm_config",
    "billing_context",
)
_STEP_TOKENS = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
_STEP_TEXTS = (
    "id",
    "organization_id",
    "project_id",
    "trace_id",
    "provider_name",
    "provider_category",
    "model",
)
SCHEMAS = {
    "provider_traces": pa.schema(_TRACE_COLUMNS | dict.fromkeys(_PAYLOADS, pa.string())),
    "provider_trace_metadata": pa.schema(_TRACE_COLUMNS),
    "steps": pa.schema(
        dict.fromkeys(_STEP_TEXTS, pa.string())
        | dict.fromkeys(_STEP_TOKENS, pa.int32())
        | {"created_at": _TIME, "updated_at": _TIME}
    ),
    "step_metrics": pa.schema(
        {"id": pa.string(), "llm_request_ns": pa.int64(), "created_at": _TIME, "updated_at": _TIME}
    ),
}
_BILLING_SCHEMA = pa.schema(
    {
        "organization_id": pa.string(),
        "plan_type": pa.string(),
        "cost_source": pa.string(),
        "stripe_customer_id": pa.string(),
        "created_at": _TIME,
        "updated_at": _TIME,
    }
)


@dataclass(frozen=True, slots=True)
class Organization:
    """A customer; its rank decides how much it calls."""

    rank: int

    @property
    def id(self) -> str:
        """The id, as the traces have it."""
        return f"org-{_fixed_uuid('organization', self.rank)}"

    @property
    def is_byok(self) -> bool:
        """Whether it brings its own keys to the providers."""
        return self.rank in (3, 8, 14)

    @property
    def has_billing(self) -> bool:
        """Whether billing knows of it at all."""
        return self.rank not in (11, 20)

    @property
    def plan(self) -> str:
        """The plan; that of `CHANGES_PLAN` is its first one."""
        return ("team", "pro", "enterprise", "free")[self.rank % 4]

    @property
    def cost_source(self) -> str:
        """What pays for its calls."""
        return "credits" if self.rank % 3 == 0 else "quota"

    @property
    def customer_id(self) -> str | None:
        """The Stripe customer; who pays nothing need not be one."""
        if self.plan == "free":
            return None
        return f"cus_{_fixed_uuid('customer', self.rank).hex[:14]}"


@dataclass(frozen=True, slots=True)
class _Agent:
    organization: Organization
    id: str
    project_id: str
    user_id: str
    tags: list[str] | None
    system: str


ORGANIZATIONS = tuple(Organization(rank) for rank in range(25))
CHANGES_PLAN = ORGANIZATIONS[1]
_ORGANIZATION_WEIGHTS = list(accumulate((rank + 1) ** -1.1 for rank in range(25)))
_RECIPE_WEIGHTS = list(accumulate(recipe.weight for recipe in RECIPES))


def billing_details(first_hour: datetime) -> pa.Table:
    """Return the organizations' plans; one of them gets another plan on the demo's second day."""
    changes_at = (first_hour + timedelta(days=1)).replace(hour=13, minute=37, second=0)
    rows = [
        {
            "organization_id": organization.id,
            "plan_type": organization.plan,
            "cost_source": organization.cost_source,
            "stripe_customer_id": organization.customer_id,
            "created_at": first_hour - timedelta(days=90 + organization.rank),
        }
        for organization in ORGANIZATIONS
        if organization.has_billing
    ]
    before = next(row for row in rows if row["organization_id"] == CHANGES_PLAN.id)
    rows.append(before | {"plan_type": "enterprise", "updated_at": changes_at})
    return pa.Table.from_pylist(rows, _BILLING_SCHEMA)


def traffic(hour: datetime) -> dict[str, pa.Table]:
    """Return the rows of an hour, by the name of their table; JSON is text."""
    rng = _random(f"hour {hour:%Y-%m-%dT%H}")
    wave = 1 + 0.5 * math.cos((hour.hour - _BUSIEST_HOUR) / 24 * math.tau)
    count = round(_MEAN_TRACES * wave * rng.uniform(0.95, 1.05))
    rows: dict[str, list[Json]] = {name: [] for name in SCHEMAS}
    runs: dict[str, tuple[str, str]] = {}
    # Never at the very start or end of the hour, and no two at once.
    for number, offset in enumerate(sorted(rng.sample(range(1, _HOUR_US), count))):
        agent = _agents()[_organization(rng).rank][rng.randrange(5)]
        if agent.id not in runs or chance(rng, 0.3):
            runs[agent.id] = (f"run-{random_uuid(rng)}", random_uuid(rng).hex)
        is_huge = hour.hour == _HUGE_HOUR and number == count // 2
        recipe = rng.choices(RECIPES, cum_weights=_RECIPE_WEIGHTS)[0]
        call = _call(rng, agent, recipe, hour + timedelta(microseconds=offset), is_huge)
        _add_step(rows, agent, runs[agent.id], recipe, call)
    return {name: pa.Table.from_pylist(rows[name], schema) for name, schema in SCHEMAS.items()}


def _add_step(
    rows: dict[str, list[Json]], agent: _Agent, run: tuple[str, str], recipe: Recipe, call: Call
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


def _call(rng: random.Random, agent: _Agent, recipe: Recipe, at: datetime, is_huge: bool) -> Call:
    asked = int(rng.lognormvariate(6.6, 0.7))
    if chance(rng, 0.003):
        asked = rng.randrange(20_000, 90_000)
    if is_huge:
        asked = rng.randrange(300_000, 420_000)
    turns = rng.choice((1, 1, 3, 3, 5, 7))
    messages = [_passage(rng, asked // turns) for _ in range(turns)]
    reply = _passage(rng, int(rng.lognormvariate(5.6, 0.7)))
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


def _billing_context(agent: _Agent) -> Json:
    customer = f"cus_{_fixed_uuid('request', agent.organization.rank).hex[:14]}"
    return {"plan_type": "enterprise", "cost_source": "credits", "customer_id": customer}


@cache
def _agents() -> tuple[tuple[_Agent, ...], ...]:
    """Return five agents for each organization, by its rank."""
    rng = _random("agents")
    tags: tuple[list[str] | None, ...] = (
        None,
        [],
        ["production"],
        ["support", "eu"],
        ["batch", "internal", "v2"],
    )
    return tuple(
        tuple(
            _Agent(
                organization=organization,
                id=f"agent-{_fixed_uuid('agent', organization.rank, number)}",
                project_id=str(_fixed_uuid("project", organization.rank, number // 2)),
                user_id=f"user-{_fixed_uuid('user', organization.rank, number)}",
                tags=tags[(organization.rank + number) % len(tags)],
                system=_passage(rng, rng.randrange(300, 1200)),
            )
            for number in range(5)
        )
        for organization in ORGANIZATIONS
    )


# ---- text

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


def _random(seed: str) -> random.Random:
    return random.Random(f"llm traces {seed}")  # noqa: S311 - the same rows every time is the point


@cache
def corpus() -> str:
    """Return text that packs about as well as what people write."""
    rng = _random("corpus")
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


def _passage(rng: random.Random, length: int) -> str:
    start = rng.randrange(_CORPUS_CHARACTERS - length)
    return corpus()[start : start + length].strip()


# ---- small things


def _text(value: Json | Sequence[str]) -> str:
    return msgspec.json.encode(value).decode()


def chance(rng: random.Random, probability: float) -> bool:
    """Return whether something of this probability happens."""
    return rng.random() < probability


def random_uuid(rng: random.Random) -> UUID:
    """Return a UUID that the generator's seed decides."""
    return UUID(int=rng.getrandbits(128), version=4)


@cache
def _fixed_uuid(kind: str, *numbers: int) -> UUID:
    return uuid5(NAMESPACE_URL, f"https://llm-traces.example/{kind}/{numbers}")


def _organization(rng: random.Random) -> Organization:
    return rng.choices(ORGANIZATIONS, cum_weights=_ORGANIZATION_WEIGHTS)[0]
