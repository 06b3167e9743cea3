"""What the pipeline must do, said once more in plain Python: no engine, no files, no hashes.

And the events that a random history is made of, to which ``World`` puts a real deployment.
"""

import random
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from llm_trace_pipeline.hours import HOUR

# A day's last hours and the next one's first, so that two partitions of the table take part. In
# Berlin the clocks go back between the last two: both have the same local hour.
HOURS = [datetime.fromisoformat("2025-10-25T22:00:00Z") + number * HOUR for number in range(4)]
# Versions of a plan begin on the same moments, so that the border counts.
MOMENTS = [timedelta(), timedelta(minutes=20), timedelta(minutes=40), HOUR - timedelta.resolution]

COLUMNS = (
    *("id", "organization_id", "project_id", "agent_id", "prompt_tokens", "completion_tokens"),
    *("total_tokens", "request_json", "response_json", "created_at", "billing_plan_type"),
    *("billing_cost_source", "billing_customer_id", "billing_match"),
)
Row = tuple[str, str, str, str, int, int, int, str, str, datetime, str, str, str, str]
Rows = tuple[Row, ...]  # of one hour, sorted
_BILLED_FROM = COLUMNS.index("billing_plan_type")


# How often each kind of event is drawn; what changes the source is cheap, loads are not.
WEIGHTS = {
    "insert": 5,
    "late insert": 3,
    "update": 3,
    "soft delete": 1,
    "delete": 1,
    "move": 3,
    "plan change": 3,
    "load hour": 4,
    "load range": 1,
    "kill": 4,
    "re-run": 1,
    "reconcile": 1,
    "sensor tick": 2,
    "prune": 1,
    "restore": 1,
    "erase": 1,
    "enrich": 1,
    "accept loss": 1,
    "meddle": 1,
}


class Event(NamedTuple):
    """What happens; numbers count modulo what there is, so that any event can be left out."""

    kind: str
    a: int
    b: int
    c: int


def draw_events(seed: int) -> list[Event]:
    """Return the events of a sequence."""
    chance = random.Random(seed)  # noqa: S311 -- test data
    kinds = chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=chance.randint(6, 14))
    return [
        Event(kind, *(chance.randrange(10_000) for _ in range(3)))
        for kind in ["insert", "insert", *kinds]
    ]


@dataclass(frozen=True)
class Trace:
    """A stored trace; its content follows from its version."""

    number: int
    organization: str
    agent: str
    created_at: datetime
    step_created_at: datetime
    version: int = 1
    is_deleted: bool = False
    is_metadata_only: bool = False
    has_own_billing: bool = False

    @property
    def id(self) -> str:
        return f"trace-{self.number}"

    @property
    def hour(self) -> datetime:
        return self.created_at.replace(minute=0, second=0, microsecond=0)

    @property
    def request(self) -> str:
        return "" if self.is_metadata_only else f'{{"messages": ["{self.version}"]}}'

    @property
    def response(self) -> str:
        if self.is_metadata_only:
            return ""
        return (
            f'{{"usage": {{"prompt_tokens": {self.prompt_tokens}, "completion_tokens": 3, '
            f'"total_tokens": {self.prompt_tokens + 3}}}}}'
        )

    @property
    def prompt_tokens(self) -> int:
        # Some updates change no figure, so that the hashes alone can tell.
        return self.number + self.version // 2

    @property
    def project(self) -> str:
        return f"project-{self.version}"


@dataclass(frozen=True)
class Erased:
    """What was erased."""

    organization: str
    agent: str | None
    before: datetime

    def covers(self, organization: str, agent: str, created_at: datetime) -> bool:
        return (
            organization == self.organization
            and self.agent in (None, agent)
            and created_at < self.before
        )


def totals(rows: Rows) -> tuple[int, ...]:
    """Return what an hour that was not loaded itself is compared by."""
    return (
        len(rows),
        len({row[0] for row in rows}),
        *(sum(tokens) for tokens in zip(*(row[4:7] for row in rows), strict=True)),
    )


@dataclass
class Model:
    """The source, what was kept of it, and what ClickHouse may hold."""

    traces: dict[int, Trace] = field(default_factory=dict)
    steps: dict[int, datetime] = field(default_factory=dict)  # they outlive their traces
    plans: dict[tuple[str, datetime], str] = field(default_factory=dict)
    history: dict[tuple[str, datetime], str] = field(default_factory=dict)
    erased: list[Erased] = field(default_factory=list)
    batches: dict[datetime, Rows] = field(default_factory=dict)
    # An hour whose load was cut may be as it was or as it should be, and nothing else.
    table: dict[datetime, set[Rows]] = field(default_factory=lambda: {hour: {()} for hour in HOURS})

    # The source and the batches

    def capture(self) -> None:
        """Read the plans: what was seen is never forgotten, and of one moment the last one wins."""
        self.history |= self.plans

    def live(self, hour: datetime) -> Rows:
        """Return the rows that the hour's batch must have now."""
        return _sorted(
            self._row(trace)
            for trace in self.traces.values()
            if trace.hour == hour and not trace.is_deleted and not self._is_erased(trace)
        )

    def _is_erased(self, trace: Trace) -> bool:
        return any(
            each.covers(trace.organization, trace.agent, trace.created_at) for each in self.erased
        )

    def _row(self, trace: Trace) -> Row:
        billing = ("own", "credits", "cus_own", "request")
        if not trace.has_own_billing:
            billing = self._billing(trace.organization, trace.created_at)
        return (
            *(trace.id, trace.organization, trace.project, trace.agent),
            *(trace.prompt_tokens, 3, trace.prompt_tokens + 3),
            *(trace.request, trace.response, trace.created_at, *billing),
        )

    def _billing(self, organization: str, at: datetime) -> tuple[str, str, str, str]:
        known = sorted(since for owner, since in self.history if owner == organization)
        if not known:
            return ("", "", "", "none")
        held = [since for since in known if since <= at]
        plan = self.history[organization, held[-1] if held else known[0]]
        return (plan, "quota", f"cus_{plan}", "as_of" if held else "first_known")

    def refuses(self, hour: datetime) -> bool:
        """Whether the source lost what it once had of the hour."""
        if hour in self.batches:
            stored = {trace.id for trace in self.traces.values()}
            return any(row[0] not in stored for row in self.batches[hour])
        if any(trace.hour == hour for trace in self.traces.values()):
            return False
        last = hour + HOUR - timedelta(minutes=1)
        orphans = [
            number
            for number, at in self.steps.items()
            if hour <= at < last and number not in self.traces
        ]
        begins = min((trace.created_at for trace in self.traces.values()), default=None)
        return bool(orphans) and (begins is None or begins < hour)

    def extract(self, hour: datetime, *, accept_loss: bool = False) -> bool:
        """Make the hour's batch; False where that is refused."""
        if not accept_loss and self.refuses(hour):
            return False
        self.batches[hour] = self.live(hour)
        return True

    def enrich(self, hour: datetime) -> None:
        """Match the hour's batch anew."""
        # mypy does not know how long a slice of a tuple is.
        self.batches[hour] = _sorted(
            row if row[-1] == "request" else (*row[:_BILLED_FROM], *self._billing(row[1], row[9]))  # type: ignore[misc]  # see above
            for row in self.batches[hour]
        )

    # ClickHouse

    def load(self, hour: datetime, awaiting: Iterable[datetime] = ()) -> None:
        """Make the table hold the hour's batch, and repair the other hours of its day."""
        self.table[hour] = {self.batches[hour]}
        for other in self._around(hour, awaiting):
            self.table[other] = {self._repaired(other, rows) for rows in self.table[other]}

    def load_cut(self, hour: datetime) -> None:
        """Begin a load: each hour may be as before or as after."""
        self.table[hour] |= {self.batches[hour]}
        for other in self._around(hour, ()):
            self.table[other] |= {self._repaired(other, rows) for rows in self.table[other]}

    def _around(self, hour: datetime, awaiting: Iterable[datetime]) -> list[datetime]:
        return [
            other
            for other in self.batches
            if other.date() == hour.date() and other != hour and other not in awaiting
        ]

    def _repaired(self, hour: datetime, rows: Rows) -> Rows:
        is_alike = totals(rows) == totals(self.batches[hour])
        return rows if is_alike else self.batches[hour]

    def erase(self, erased: Erased) -> None:
        """Take the rows out of everything."""
        self.erased.append(erased)

        def kept(rows: Rows) -> Rows:
            return tuple(row for row in rows if not erased.covers(row[1], row[3], row[9]))

        self.batches = {hour: kept(rows) for hour, rows in self.batches.items()}
        for hour, each in self.table.items():
            self.table[hour] = {kept(rows) for rows in each}
            if hour in self.batches:  # it may be loaded to make sure, or repaired beside another
                self.table[hour] |= {self.batches[hour]}

    def at_rest(self) -> dict[datetime, Rows]:
        """Return what ClickHouse must hold once nothing is left to be done.

        An hour that the source lost traces of keeps its rows, with the billing that is known now.
        """
        last = deepcopy(self)
        last.capture()
        for hour in HOURS:
            is_stored = any(trace.hour == hour for trace in last.traces.values())
            if hour in last.batches and last.refuses(hour):
                last.enrich(hour)
            elif hour in last.batches or is_stored:
                last.extract(hour)
        return {hour: last.batches.get(hour, ()) for hour in HOURS}

    # Changes of the source

    def change(self, number: int, **values: object) -> Trace:
        """Change a stored trace."""
        # The values are named by the tests, which mypy cannot follow.
        self.traces[number] = replace(self.traces[number], **values)  # type: ignore[arg-type]  # see above
        return self.traces[number]


def _sorted(rows: Iterable[Row]) -> Rows:
    return tuple(sorted(rows))
