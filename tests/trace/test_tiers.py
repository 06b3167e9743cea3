"""How a call was served, as its response states it: tier, speed, region, size of a search."""

from typing import Any

import pytest

from llm_trace_pipeline.trace.details import Details
from tests.harness.responses import ANTHROPIC, CHAT, GEMINI, GEMINI_REST, details_in, read


@pytest.mark.parametrize(
    ("response", "tier"),
    [
        *(
            pytest.param({"usage": CHAT, "service_tier": name}, "standard", id=f"openai: {name}")
            for name in ("default", "auto", "standard", "on_demand", "Default")
        ),
        *(
            pytest.param({"usage": CHAT, "service_tier": name}, name, id=f"openai: {name}")
            for name in ("flex", "priority", "scale", "fast")
        ),
        *(
            pytest.param({"usage": CHAT, "service_tier": value}, "", id=f"no tier: {value!r}")
            for value in (None, "", 3, ["flex"], {}, {"type": None})
        ),
        pytest.param({"usage": CHAT}, "", id="not stated"),
        pytest.param({"usage": ANTHROPIC | {"service_tier": "standard"}}, "standard", id="usage"),
        pytest.param({"usage": ANTHROPIC | {"service_tier": "batch"}}, "batch", id="anthropic"),
        pytest.param({"usage": ANTHROPIC | {"service_tier": "priority"}}, "priority", id="prepaid"),
        pytest.param(
            {"usage": CHAT | {"service_tier": "flex"}, "service_tier": "default"},
            "flex",
            id="the usage object comes first",
        ),
        pytest.param(
            {"usage": {"inputTokens": 5}, "serviceTier": {"type": "flex"}}, "flex", id="bedrock"
        ),
        pytest.param(
            {"usage": {"inputTokens": 5}, "serviceTier": {"type": "default"}},
            "standard",
            id="bedrock's default",
        ),
        *(
            pytest.param({"usage_metadata": GEMINI | {"traffic_type": name}}, tier, id=name)
            for name, tier in {
                "ON_DEMAND": "standard",
                "TRAFFIC_TYPE_UNSPECIFIED": "standard",
                "ON_DEMAND_FLEX": "flex",
                "ON_DEMAND_PRIORITY": "priority",
                "PROVISIONED_THROUGHPUT": "provisioned_throughput",
            }.items()
        ),
        pytest.param(
            {"usageMetadata": GEMINI_REST | {"trafficType": "ON_DEMAND_FLEX"}},
            "flex",
            id="vertex over REST",
        ),
        pytest.param(
            {"response": {"status_code": 200, "body": {"usage": CHAT, "service_tier": "default"}}},
            "batch",
            id="a line of openai's batch",
        ),
        pytest.param(
            {"result": {"type": "succeeded", "message": {"usage": ANTHROPIC}}},
            "batch",
            id="a line of anthropic's batch",
        ),
        pytest.param(
            {"type": "response.completed", "response": {"usage": CHAT, "service_tier": "flex"}},
            "flex",
            id="an event of a stream",
        ),
        *(
            pytest.param({"usage": CHAT | usage, **body}, "flex", id=f"openai's usage with {name}")
            for name, usage, body in (
                ("serviceTier", {}, {"serviceTier": {"type": "flex"}}),
                ("usage.serviceTier", {"serviceTier": "flex"}, {}),
                ("usage.trafficType", {"trafficType": "ON_DEMAND_FLEX"}, {}),
            )
        ),
    ],
)
def test_the_tier_that_served_a_call_is_read(response: Any, tier: str) -> None:
    assert read(response).service_tier == tier


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"speed": "fast"}, {"speed": "fast"}),
        ({"speed": "Fast"}, {"speed": "fast"}),
        ({"speed": "standard"}, {}),
        ({"speed": None}, {}),
        ({"inference_geo": "us"}, {"inference_geo": "us"}),
        ({"inference_geo": "US"}, {"inference_geo": "us"}),
        ({"inference_geo": "global"}, {}),
        ({"inference_geo": "not_available"}, {}),
        ({"inference_geo": ""}, {}),
        ({"search_context_size": "low"}, {"search_context_size": "low"}),
        ({"search_context_size": None}, {}),
        ({"speed": ["fast"], "inference_geo": 1, "search_context_size": {}}, {}),
        (
            {"speed": "fast", "inference_geo": "us", "server_tool_use": {"web_search_requests": 1}},
            {"speed": "fast", "inference_geo": "us", "web_searches": 1},
        ),
    ],
)
def test_speed_region_and_size_are_read_where_they_are_unusual(
    usage: Any, expected: Details
) -> None:
    assert details_in(ANTHROPIC | usage) == expected
