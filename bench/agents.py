"""The traffic of agents: every call resends what its agent is, knows and has said until then.

An agent has a system prompt, which its organization's agents share in part, tools from a common
stock, blocks of memory that change now and then, and messages. The window of messages grows by an
answer and a question a call; where it is full, its older half is cut. All of it is a pure function
of the agent's number and the number of the call.
"""

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from llm_trace_pipeline.demo.responses import (
    RECIPES,
    Json,
    Recipe,
    json_text,
    values_of_call,
)
from llm_trace_pipeline.demo.text import passage, seeded

ORGANIZATIONS = range(60)
AGENTS = range(400)

_WEIGHTS = [1 / (number + 25) for number in AGENTS]  # the busiest makes 1.4 % of the calls
_HALF_WINDOW = 24  # messages; the window has at most twice as many
_TOOLS_IN_STOCK = 60
_BLOCKS = 4  # of memory
_CALLS_OF_BLOCK = 24  # until it changes


class AgentCall(NamedTuple):
    """A call: who made it, how it is asked and answered, and the values of the templates."""

    organization: int
    agent: int
    recipe: Recipe
    values: Json


@cache
def schedule(calls: int) -> list[tuple[int, int]]:
    """Return the agent of every call of an hour, and how many calls the agent made before it."""
    made: Counter[int] = Counter()
    turns = []
    for agent in seeded("agents").choices(AGENTS, _WEIGHTS, k=calls):
        turns.append((agent, made[agent]))
        made[agent] += 1
    return turns


def agent_call(agent: int, number: int) -> AgentCall:
    """Return a call of an agent, by the number of calls that the agent made before it."""
    organization = agent % len(ORGANIZATIONS)
    rng = seeded(f"agent {agent}")
    [recipe] = rng.choices(RECIPES, [recipe.weight for recipe in RECIPES])
    system = passage(seeded(f"prompt {organization}"), 6_000) + passage(rng, 2_000)
    tools = [_tool(each) for each in rng.sample(range(_TOOLS_IN_STOCK), 18)]
    memory = "".join(f"\n<memory>{_block(agent, each, number)}</memory>" for each in range(_BLOCKS))
    end = 2 * (rng.randrange(_HALF_WINDOW) + number) + 1  # the number of the message that answers
    begin = max(0, (end // _HALF_WINDOW - 1) * _HALF_WINDOW)
    texts = [(each % 2, _message(agent, each)) for each in range(begin, end)]
    reply = _message(agent, end)
    system += memory
    length = len(system) + len(json_text(tools)) + sum(len(text) for _, text in texts)
    rng = seeded(f"call {agent} {number}")
    values = values_of_call(rng, recipe, system, texts, reply, length=length)
    asked = replace(recipe, request=recipe.request | {"tools": "$tools"})
    return AgentCall(organization, agent, asked, values | {"tools": tools})


def _tool(number: int) -> Json:
    rng = seeded(f"tool {number}")
    properties = {
        f"argument_{each}": {"type": "string", "description": passage(rng, rng.randrange(40, 300))}
        for each in range(rng.randrange(2, 8))
    }
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    name = f"tool_{number}"
    described = {"name": name, "description": passage(rng, rng.randrange(200, 900))}
    return {"type": "function", "function": described | {"parameters": parameters}}


def _block(agent: int, block: int, number: int) -> str:
    version = (number + block * _CALLS_OF_BLOCK // _BLOCKS) // _CALLS_OF_BLOCK
    return passage(seeded(f"memory {agent} {block} {version}"), 2_000)


def _message(agent: int, number: int) -> str:
    rng = seeded(f"message {agent} {number}")
    return passage(rng, 1 + int(rng.lognormvariate(5.9, 0.8)))  # 500 characters on average
