"""Who makes the demo's calls: 25 organizations, their agents, and their billing details."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from llm_trace_pipeline.demo.chance import fixed_uuid, generator, passage

_TAGS: tuple[list[str] | None, ...] = (
    None,
    [],
    ["production"],
    ["support", "eu"],
    ["batch", "internal", "v2"],
)


@dataclass(frozen=True, slots=True)
class Organization:
    """A customer; the lower its rank, the more calls it makes."""

    rank: int

    @property
    def id(self) -> str:
        """The id in the traces."""
        return f"org-{fixed_uuid('organization', self.rank)}"

    @property
    def is_byok(self) -> bool:
        """Whether the organization brings its own keys to the providers."""
        return self.rank in (3, 8, 14)

    @property
    def has_billing(self) -> bool:
        """Whether the billing table knows the organization."""
        return self.rank not in (11, 20)

    @property
    def plan(self) -> str:
        """The plan on the demo's first day."""
        return ("team", "pro", "enterprise", "free")[self.rank % 4]

    @property
    def cost_source(self) -> str:
        """The source that pays for the calls: ``quota`` or ``credits``."""
        return "credits" if self.rank % 3 == 0 else "quota"

    @property
    def customer_id(self) -> str | None:
        """The Stripe customer; an organization on the free plan has none."""
        if self.plan == "free":
            return None
        return f"cus_{fixed_uuid('customer', self.rank).hex[:14]}"


@dataclass(frozen=True, slots=True)
class Agent:
    """One of an organization's agents, with its system prompt."""

    organization: Organization
    id: str
    project_id: str
    user_id: str
    tags: list[str] | None
    system: str


ORGANIZATIONS = tuple(Organization(rank) for rank in range(25))
CHANGES_PLAN = ORGANIZATIONS[1]


def billing_details(first_hour: datetime) -> list[dict[str, Any]]:
    """Return the rows of the billing table for a demo that begins with this hour.

    `CHANGES_PLAN` has two rows: on the demo's second day it gets another plan.
    """
    changes_at = (first_hour + timedelta(days=1)).replace(hour=13, minute=37, second=0)
    rows: list[dict[str, Any]] = [
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
    return [*rows, before | {"plan_type": "enterprise", "updated_at": changes_at}]


@cache
def agents() -> tuple[tuple[Agent, ...], ...]:
    """Return the agents of every organization, by the organization's rank."""
    rng = generator("agents")
    return tuple(
        tuple(
            Agent(
                organization=organization,
                id=f"agent-{fixed_uuid('agent', organization.rank, number)}",
                project_id=str(fixed_uuid("project", organization.rank, number // 2)),
                user_id=f"user-{fixed_uuid('user', organization.rank, number)}",
                tags=_TAGS[(organization.rank + number) % len(_TAGS)],
                system=passage(rng, rng.randrange(300, 1200)),
            )
            for number in range(5)
        )
        for organization in ORGANIZATIONS
    )
