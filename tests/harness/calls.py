"""Calls of more models and organizations than a report names one by one, and what they cost."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal

from llm_trace_pipeline.clickhouse.client import Database
from llm_trace_pipeline.reports.spend import Days

FIRST, LAST = date(2026, 3, 1), date(2026, 3, 5)


LONG, SHORT, EMPTY = Days(FIRST, LAST), Days(FIRST, FIRST), Days(date(2025, 1, 1), date(2025, 1, 1))


HOSTILE = "<script>alert('1')</script>\"'><img src=x onerror=alert(2)> & {{ 7 * 7 }} \\"


# US dollars a token: input, from the cache, written to it, output. The tenth has no price.
RATES: dict[str, Sequence[Decimal]] = {
    f"model-{number}": [Decimal(number) * Decimal(units) / 10**8 for units in (100, 10, 125, 400)]
    for number in range(1, 10)
}


UNPRICED = HOSTILE
UNMETERED = "model-0"  # whose answers do not say how many tokens they used


@dataclass(frozen=True)
class Call:
    """What the report reads of a call."""

    organization_id: str
    model: str
    created_at: datetime
    is_byok: int
    is_error: int
    error_type: str
    latency_ms: int
    prompt_tokens: int
    completion_tokens: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    billing_plan_type: str
    billing_cost_source: str
    billing_customer_id: str
    billing_match: str

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def usage_source(self) -> str:
        return "none" if self.model == UNMETERED else "response"

    @property
    def costs(self) -> dict[str, Decimal | None]:
        """Input, from the cache, written to it, output; None without a price."""
        names = ("input", "cached_input", "cache_write", "output")
        if self.model not in RATES:
            return dict.fromkeys(names)
        cached, written = self.cached_input_tokens or 0, self.cache_write_tokens or 0
        counts = (self.prompt_tokens - cached - written, cached, written, self.completion_tokens)
        plain, read, write, output = (
            count * rate for count, rate in zip(counts, RATES[self.model], strict=True)
        )
        return dict(zip(names, (plain + read + write, read, write, output), strict=True))

    @property
    def cost(self) -> Decimal:
        costs = self.costs
        return (costs["input"] or Decimal(0)) + (costs["output"] or Decimal(0))


def _unmetered(call: Call) -> Call:
    return replace(
        call,
        model=UNMETERED,
        is_error=0,
        error_type="",
        prompt_tokens=0,
        completion_tokens=0,
        cached_input_tokens=None,
        cache_write_tokens=None,
    )


def made_calls() -> list[Call]:
    """Return calls of more models and organizations than the report names one by one."""
    rng = random.Random(1)  # noqa: S311 -- the same calls every time
    start = LONG.window.start
    calls = []
    for _ in range(1500):
        number = min(int(rng.expovariate(0.15)), 24)
        model = rng.choice([*RATES, UNPRICED] if rng.random() < 0.3 else ["model-3", "model-7"])
        prompt = rng.randrange(1, 4000)
        cached = rng.choice([None, 0, prompt // 2, prompt]) if model != "model-5" else prompt
        written = None if cached == prompt else rng.choice([None, prompt // 4])
        failed = rng.random() < 0.05
        has_billing = number != 4
        calls.append(
            Call(
                organization_id=HOSTILE if number == 0 else f"org-{number}",
                model=model,
                created_at=start + timedelta(seconds=rng.randrange(5 * 86400)),
                is_byok=int(number in {2, 9}),
                is_error=int(failed),
                error_type=rng.choice(["rate_limit", HOSTILE, ""]) if failed else "",
                latency_ms=rng.choice([0, rng.randrange(1, 9000)]),
                prompt_tokens=prompt,
                completion_tokens=rng.randrange(2000),
                cached_input_tokens=cached,
                cache_write_tokens=written,
                billing_plan_type=("team", "pro", HOSTILE)[number % 3] if has_billing else "",
                billing_cost_source=("quota", "credits")[number % 2] if has_billing else "",
                billing_customer_id=f"cus_{number}<b>" if has_billing else "",
                billing_match="as_of" if has_billing else "none",
            )
        )
    return [*calls, *map(_unmetered, calls[::40])]


CALLS = made_calls()


def insert(database: Database, calls: Sequence[Call]) -> None:
    """Put calls into the table, as a load would have."""
    rows = [
        {
            **asdict(call),
            "id": str(number),
            "provider": "some-provider",
            "total_tokens": call.total_tokens,
            "usage_source": call.usage_source,
            "created_at": f"{call.created_at:%Y-%m-%d %H:%M:%S}",
            **{
                f"{name}_cost_usd": None if cost is None else f"{cost:f}"
                for name, cost in call.costs.items()
            },
            "cost_usd": f"{call.cost:f}" if call.model in RATES else None,
            "price_version": "prices <1>" if call.model in RATES else "",
        }
        for number, call in enumerate(calls)
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    database.execute(f"INSERT INTO llm_traces FORMAT JSONEachRow\n{lines}")


def summed(calls: Sequence[Call]) -> dict[str, Decimal]:
    """Return what tables of spend say of some calls."""
    return {
        "calls": Decimal(len(calls)),
        "tokens": Decimal(sum(call.total_tokens for call in calls)),
        "spend_usd": sum((call.cost for call in calls if not call.is_byok), Decimal(0)),
        "byok_usd": sum((call.cost for call in calls if call.is_byok), Decimal(0)),
    }
