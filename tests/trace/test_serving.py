"""Who served a call, which model, and in which tier: what the price is looked up by."""

from decimal import Decimal
from typing import Any

import pytest

from llm_trace_pipeline.trace.context import Names
from llm_trace_pipeline.trace.payloads import PayloadPolicy
from llm_trace_pipeline.trace.serving import listed_provider, served_by
from tests.harness.prices import call, costs
from tests.harness.source_rows import load

OPENAI = "https://api.openai.com/v1"
LOCAL = "http://localhost:8000/v1"


@pytest.mark.parametrize(
    ("endpoint_type", "name", "handle", "endpoint", "server"),
    [
        pytest.param("openai", "openai", "openai/gpt-5", OPENAI, "openai", id="openai"),
        pytest.param("openai", "", "", "", "openai", id="nothing more is known"),
        pytest.param("openai", "", "gpt-5", "", "openai", id="a handle without a provider"),
        *(
            pytest.param("openai", name, f"{name}/m", LOCAL, name, id=f"the name: {name}")
            for name in ("mistral", "cerebras", "vllm", "sglang", "ollama", "lmstudio_openai")
        ),
        pytest.param("openai", "", "mistral/m", "", "mistral", id="the head of the handle"),
        pytest.param("openai", "xai", "other/m", "", "xai", id="the name before the handle"),
        pytest.param("", "", "mistral/m", "", "mistral", id="no endpoint type"),
        pytest.param("", "", "", "", "", id="nothing at all"),
        pytest.param(
            "anthropic", "mistral", "mistral/m", OPENAI, "anthropic", id="another endpoint type"
        ),
        pytest.param("azure", "mine", "mine/gpt-5", LOCAL, "azure", id="azure"),
        pytest.param("openai", "my-key", "my-key/gpt-5", OPENAI, "openai", id="an own key"),
        pytest.param(
            "openai",
            "my-key",
            "my-key/m",
            "https://api.deepseek.com/v1",
            "deepseek",
            id="an own key of another provider",
        ),
        pytest.param(
            "openai",
            "my-key",
            "my-key/m",
            "https://openrouter.ai/api/v1",
            "openrouter",
            id="an own key of a router",
        ),
        pytest.param(
            "openai",
            "prod",
            "prod/gpt-5",
            "https://us-1.openai.azure.com/openai",
            "azure",
            id="an own key of azure",
        ),
        pytest.param(
            "openai", "my-key", "my-key/m", LOCAL, "my-key", id="an own key of nobody known"
        ),
        pytest.param(
            "openai",
            "openai",
            "openai/m",
            "https://api.groq.com/openai/v1",
            "groq",
            id="openai's name at another address",
        ),
        pytest.param(
            "openai", "my-vllm", "my-vllm/m", LOCAL, "my-vllm", id="an own key of own software"
        ),
        pytest.param(
            "openai", "openai", "openai-proxy/m", LOCAL, "openai-proxy", id="OPENAI_BASE_URL"
        ),
        pytest.param(
            "openai", "openai", "openai-proxy/m", "", "openai-proxy", id="OPENAI_BASE_URL alone"
        ),
        pytest.param(
            "openai",
            "openai",
            "openai-proxy/m",
            "https://openrouter.ai/api/v1",
            "openrouter",
            id="OPENAI_BASE_URL of somebody known",
        ),
        pytest.param(
            "openai", "openai", "openai/m", LOCAL, "openai-proxy", id="openai's name at nobody's"
        ),
        pytest.param(
            "openai",
            "zai_coding",
            "zai_coding/m",
            "https://api.z.ai/api/coding/paas/v4",
            "zai_coding",
            id="a subscription at a provider's address",
        ),
        pytest.param("openai", "letta", "letta/letta-free", OPENAI, "letta", id="the agent server"),
        pytest.param(
            "openai",
            "google-by-openrouter",
            "google-by-openrouter/m",
            "https://openrouter.ai/api/v1",
            "openrouter",
            id="an own key with a provider's name in its own",
        ),
    ],
)
def test_the_names_of_a_call_tell_who_served_it(
    endpoint_type: str, name: str, handle: str, endpoint: str, server: str
) -> None:
    assert served_by(endpoint_type, Names(endpoint_type, "", "", name, handle, endpoint)) == server


@pytest.mark.parametrize(
    ("name", "provider"),
    {
        "openai": "openai",
        "anthropic": "anthropic",
        "google_ai": "google",
        "google_vertex": "google",
        "bedrock": "aws",
        "azure": "azure",
        "xai": "x-ai",
        "together": "together",
        "moonshot": "moonshotai",
        "zai": "zai",
        "minimax": "minimax",
        "openrouter": "openrouter",
    }.items(),
)
def test_endpoint_types_are_known_to_the_package(name: str, provider: str) -> None:
    found = listed_provider(name)
    assert found
    assert found.id == provider


@pytest.mark.parametrize(
    "name",
    [
        *("vllm", "my-vllm", "VLLM", "ollama", "lmstudio_openai", "lm-studio", "sglang-prod"),
        *("llama.cpp", "llama-cpp", "koboldcpp", "webui", "localai", "openai-proxy"),
        *("letta", "chatgpt_oauth", "zai_coding", "some-gateway", ""),
    ],
)
def test_what_somebody_hosts_or_sells_by_the_month_has_no_list_price(name: str) -> None:
    assert listed_provider(name) is None
    [row] = costs([call("gpt-4o", provider="openai", served_by=name or "unknown")])
    assert (row["cost_usd"], row["price_entry"]) == (None, "")


@pytest.mark.parametrize(
    ("server", "model", "served", "entry"),
    [
        ("openai", "gpt-4o", "gpt-4o-2024-05-13", "openai/gpt-4o-2024-05-13"),
        ("openai", "gpt-4o", "", "openai/gpt-4o"),
        ("openai", "gpt-4o", "a-new-name", ""),
        (
            "mistral",
            "mistral-medium-latest",
            "mistral-medium-9999",
            "mistral/mistral-medium-latest",
        ),
        ("openai", "GPT-4o", "", "openai/gpt-4o"),
        ("openai", "", "gpt-4o", "openai/gpt-4o"),
        ("openai", "", "", ""),
        ("openai", "gpt-5.4-fast", "", "openai/gpt-5.4"),
        ("openai", "gpt-5.4-fast", "gpt-5.4-2026-03-05", "openai/gpt-5.4"),
        ("openai", "no-such-model-fast", "", ""),
        ("xai", "grok-3-fast", "", "x-ai/grok-3-fast"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:org::id", "", "openai/ft:gpt-4o-mini"),
        ("openai", "ft:gpt-4o-2024-08-06:org::id", "", "openai/ft:gpt-4o"),
        ("openai", "ft:gpt-4.1-2025-04-14:org::id", "", ""),
        ("google_ai", "models/gemini-2.5-flash", "", "google/gemini-2.5-flash"),
        ("google_ai", "models/gemini-2.5-pro", "gemini-2.5-flash", "google/gemini-2.5-flash"),
        (
            "google_vertex",
            "publishers/google/models/gemini-2.5-flash",
            "",
            "google/gemini-2.5-flash",
        ),
        ("google_ai", "gemma-3-27b-it", "", "google/gemma-3"),  # free
        ("openrouter", "deepseek/deepseek-r1:free", "", "openrouter/deepseek/deepseek-r1:free"),
        ("groq", "whisper-large-v3", "", ""),  # by the hour, which no answer states
        ("google_vertex", "claude-sonnet-4-5@20250929", "", "google/claude-sonnet-4-5"),
        (
            "bedrock",
            "arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-pro-v1:0",
            "",
            "aws/amazon.nova-pro-v1:0",
        ),
        (
            "bedrock",
            "arn:aws:bedrock:us-east-1::foundation-model/openai.gpt-5.4",
            "",
            "aws/openai.gpt-5.4",
        ),
        (
            "bedrock",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "claude-opus-4-5",
            "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        (
            "bedrock",
            "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "claude-sonnet-4-5",
            "aws/global.anthropic.claude-sonnet-4-5-20250929-v1:0",
        ),
        (
            "bedrock",
            "arn:aws:bedrock:us-east-1:1:application-inference-profile/k3x",
            "claude-sonnet-4-5-20250929",
            "",
        ),
        ("openrouter", "openrouter/auto", "openai/gpt-5-mini", "openrouter/openai/gpt-5-mini"),
        ("openrouter", "openai/gpt-5", "openai/gpt-5-2025-08-07", "openrouter/openai/gpt-5"),
        ("openrouter", "openai/gpt-5", "openai/a-new-name", ""),
        ("openrouter", "openai/gpt-5", "acme/unknown", ""),
        ("openrouter", "openai/gpt-5", "", "openrouter/openai/gpt-5"),
        ("azure", "my-deployment", "gpt-4o-2024-08-06", "azure/gpt-4o"),
        ("azure", "gpt-4o", "acme-unknown", ""),
        ("azure", "gpt-4o", "", "azure/gpt-4o"),
        ("azure", "my-deployment", "", ""),
    ],
)
def test_a_call_is_priced_by_the_model_that_served_it(
    server: str, model: str, served: str, entry: str
) -> None:
    [row] = costs([call(model, provider=server, served_model=served)])
    assert row["price_entry"] == entry
    assert (row["cost_usd"] is None) == (entry == "")


@pytest.mark.parametrize(
    ("config", "response", "expected"),
    [
        pytest.param(
            {"model_endpoint_type": "openai", "model": "gpt-5.4-fast"},
            {"model": "gpt-5.4-2026-03-05"},
            ("openai", "gpt-5.4-2026-03-05", "priority"),
            id="a fast name asks for priority",
        ),
        pytest.param(
            {"model_endpoint_type": "openai", "model": "gpt-5.4-fast"},
            {"model": "gpt-5.4", "service_tier": "default"},
            ("openai", "gpt-5.4", ""),
            id="the response says that it was not had",
        ),
        pytest.param(
            {"model_endpoint_type": "openai", "model": "gpt-5.4-fast"},
            {"model": "gpt-5.4", "service_tier": "flex"},
            ("openai", "gpt-5.4", "flex"),
            id="the response says another tier",
        ),
        pytest.param(
            {"model_endpoint_type": "xai", "model": "grok-3-fast"},
            {},
            ("xai", "", ""),
            id="a model's own name",
        ),
        pytest.param(
            {"model_endpoint_type": "openai", "model": "gpt-5.4-fast", "provider_name": "vllm"},
            {},
            ("vllm", "", ""),
            id="nobody's name",
        ),
        pytest.param(
            {
                "model_endpoint_type": "openai",
                "model": "m",
                "handle": "my-key/m",
                "model_endpoint": "https://api.deepseek.com",
            },
            {"model": "deepseek-chat"},
            ("deepseek", "deepseek-chat", ""),
            id="an address",
        ),
        pytest.param(
            None,
            {"model": "gpt-4o"},
            ("unknown", "gpt-4o", ""),
            id="the column provider",
        ),
    ],
)
def test_rows_say_who_served_which_model_how(
    config: Any, response: Any, expected: tuple[str, str, str]
) -> None:
    response |= {"usage": {"prompt_tokens": 10, "completion_tokens": 1}}
    [row], _ = load([{"llm_config": config, "response_json": response}])
    assert (row["served_by"], row["served_model"], row["service_tier"]) == expected


@pytest.mark.parametrize(
    ("config", "step", "server"),
    [
        pytest.param(None, {"step_provider": "anthropic"}, "anthropic", id="the step's provider"),
        pytest.param(
            {"handle": "mistral/m"}, {"step_provider": "openai"}, "mistral", id="the handle"
        ),
        pytest.param(
            None,
            {"step_provider": "openai", "step_model_handle": "vllm/gpt-4o"},
            "vllm",
            id="the handle of the step",
        ),
    ],
)
def test_the_step_tells_who_served_a_call_without_configuration(
    config: Any, step: dict[str, str], server: str
) -> None:
    [row], _ = load([{"llm_config": config, "is_metadata_only": True, **step}])
    assert row["served_by"] == server


@pytest.mark.parametrize(
    ("name", "endpoint", "server"),
    [
        ("mistral", "https://openrouter.ai/api/v1", "openrouter"),
        ("mistral", "https://api.mistral.ai/v1", "mistral"),
        ("my-mistral", "https://api.mistral.ai/v1", "my-mistral"),
        ("vllm", OPENAI, "openai"),
        ("mistral", LOCAL, "openai-proxy"),
    ],
)
def test_of_an_own_key_the_address_tells(name: str, endpoint: str, server: str) -> None:
    names = Names("openai", "m", "byok", name, f"{name}/m", endpoint)
    assert served_by("openai", names) == server


@pytest.mark.parametrize(
    ("name", "provider"),
    {
        "my-openai": "openai",
        "openai-prod": "openai",
        "groq key": "groq",
        "GROQ": "groq",
        "Acme/Anthropic": "anthropic",
        "openai-or-groq": None,
        "openai by vllm": None,
        "myopenai": None,
        "kimi": None,
    }.items(),
)
def test_the_name_of_an_own_key_stands_for_the_one_provider_in_it(
    name: str, provider: str | None
) -> None:
    found = listed_provider(name)
    assert (found and found.id) == provider


SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"


def on_bedrock(requested: str | None) -> dict[str, Any]:
    """Return a call of a model by the profile that was requested."""
    return {
        "llm_config": {"model_endpoint_type": "bedrock", "model": SONNET},
        "request_json": {"model": requested},
        "response_json": {"usage": {"inputTokens": 1_000, "outputTokens": 100}},
    }


@pytest.mark.parametrize(
    ("requested", "region", "cost"),
    [
        (None, "regional", "0.00495"),
        (f"us.{SONNET}", "regional", "0.00495"),
        (f"global.{SONNET}", "global", "0.0045"),
        (f"arn:aws:bedrock:us-east-1:1:inference-profile/global.{SONNET}", "global", "0.0045"),
        ("arn:aws:bedrock:us-east-1:1:application-inference-profile/k3x", "", None),
    ],
)
def test_of_bedrock_the_profile_that_was_requested_tells_the_region(
    requested: str | None, region: str, cost: str | None
) -> None:
    [row], _ = load([on_bedrock(requested)])
    assert row["model"] == SONNET
    assert (row["cost_usd"], row["price_entry"]) == (
        (None, "") if cost is None else (Decimal(cost), f"aws/{region}.{SONNET}")
    )


def test_what_a_call_costs_does_not_depend_on_the_payloads_that_are_kept() -> None:
    [row], _ = load([on_bedrock(f"global.{SONNET}")], payloads=PayloadPolicy(keeps_payloads=False))
    assert row["price_entry"] == f"aws/global.{SONNET}"


def test_a_server_at_an_own_address_has_no_list_price() -> None:
    config = {
        "model_endpoint_type": "openai",
        "model": "gpt-4o",
        "provider_name": "openai",
        "model_endpoint": LOCAL,
    }
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    [row], _ = load([{"llm_config": config, "response_json": {"usage": usage}}])
    assert row["cost_usd"] is None
