"""What is kept of payloads, and that usage, sizes and errors are not touched by it."""

from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest
from xxhash import xxh3_64_intdigest

from llm_trace_pipeline.batches.erasures import Erasure
from llm_trace_pipeline.batches.extract import extract_hour
from llm_trace_pipeline.batches.history import capture_billing
from llm_trace_pipeline.batches.rules import Rules
from llm_trace_pipeline.batches.store import BatchStore
from llm_trace_pipeline.clickhouse.client import connect
from llm_trace_pipeline.defs.stores import source_of
from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.payloads import PayloadPolicy, RedactionError
from llm_trace_pipeline.upkeep.erase import erase
from tests.harness.operational import Operational, trace
from tests.harness.pipeline import Pipeline
from tests.harness.rows import T0

REQUEST = '{"model": "gpt-4o", "messages": [{"content": "my secret is blue"}]}'
FAILURE = '{"error": {"type": "invalid_request", "message": "cannot serve: my secret is blue"}}'
USED = trace()["response_json"]
COUNTED = (
    "id, request_size_bytes, response_size_bytes, prompt_tokens, total_tokens, is_error, error_type"
)


def redact(text: str) -> str:
    """What a user's function may be."""
    return text.replace("secret is blue", "secret is [redacted]")


def load(
    settings: Settings, store: BatchStore, *, force: bool = False, **changes: str
) -> dict[str, list[dict[str, Any]]]:
    """Extract and load the hour as the settings say; return what batch and table hold of it."""
    settings = settings.model_copy(update=changes)
    with connect(settings) as database:
        pipeline = Pipeline(source_of(settings), store, database)
        rules = Rules.of(settings, capture_billing(pipeline.source, store.files).history)
        manifest = extract_hour(pipeline.source, store, rules, T0)
        pipeline.load_batch(force=force)
        table = pipeline.rows()
    rows = [
        row
        for path in store.part_paths(manifest)
        for row in pq.read_table(str(path)).sort_by("id").to_pylist()
    ]
    return {"batch": rows, "table": table}


@pytest.fixture
def hour(operational: Operational) -> None:
    operational.insert(
        "provider_traces",
        trace(id="a", request_json=REQUEST),
        trace(id="b", request_json=REQUEST, response_json=FAILURE),
    )


@pytest.mark.usefixtures("hour")
@pytest.mark.parametrize(
    ("payloads", "in_batch", "in_table"),
    [("all", True, True), ("batches", True, False), ("none", False, False)],
)
def test_payloads_are_kept_where_they_may_be(
    settings: Settings,
    store: BatchStore,
    payloads: str,
    in_batch: bool,
    in_table: bool,
) -> None:
    found = load(settings, store, payloads=payloads)
    texts = [(REQUEST, USED), (REQUEST, FAILURE)]
    for place, is_kept in (("batch", in_batch), ("table", in_table)):
        kept = [(row["request_json"], row["response_json"]) for row in found[place]]
        assert kept == (texts if is_kept else [("", "")] * 2)
        assert [row["request_size_bytes"] for row in found[place]] == [len(REQUEST)] * 2
        assert [row["response_size_bytes"] for row in found[place]] == [len(USED), len(FAILURE)]
        assert [row["total_tokens"] for row in found[place]] == [15, 0]
        assert [row["is_error"] for row in found[place]] == [0, 1]
        assert found[place][1]["error_message"] == "cannot serve: my secret is blue"
        of_batch = ["".join(text) if in_batch else "" for text in texts]
        hashes = [row["payload_hash"] for row in found[place]]
        assert hashes == [xxh3_64_intdigest(text.encode()) for text in of_batch]


@pytest.mark.usefixtures("hour")
def test_a_text_is_kept_as_the_function_leaves_it(settings: Settings, store: BatchStore) -> None:
    whole = load(settings, store)
    found = load(settings, store, redact="tests.batches.test_privacy:redact")
    assert whole["table"] != found["table"]  # loaded anew, although usage is the same
    for rows in found.values():
        assert "blue" not in repr(rows)
        assert [row["request_json"] for row in rows] == [redact(REQUEST)] * 2
        assert rows[1]["error_message"] == "cannot serve: my secret is [redacted]"
    for place, rows in found.items():
        for name in COUNTED.split(", "):
            assert [row[name] for row in rows] == [row[name] for row in whole[place]]
    assert "blue" in repr(load(settings, store)["table"])


@pytest.mark.usefixtures("hour")
def test_rows_that_are_there_lose_their_payloads_when_they_are_loaded_again(
    settings: Settings, store: BatchStore
) -> None:
    load(settings, store)
    assert load(settings, store, payloads="batches")["table"][0]["request_json"] == REQUEST
    found = load(settings, store, payloads="batches", force=True)
    assert [row["request_json"] for row in found["table"]] == ["", ""]
    found = load(settings, store, payloads="none")
    assert [row["request_json"] for row in found["batch"]] == ["", ""]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:redact", "No module named 'no_such_module'"),
        ("tests.batches.test_privacy:nothing", "has no attribute 'nothing'"),
        ("tests.batches.test_privacy:REQUEST", "is no function"),
    ],
)
def test_a_function_that_cannot_be_used_is_one_line(
    settings: Settings, name: str, reason: str
) -> None:
    with pytest.raises(SettingsError, match=f"^LLM_TRACES_REDACT: {name} .*{reason}"):
        PayloadPolicy.of(settings.model_copy(update={"redact": name}))


def test_a_name_of_another_shape_is_refused() -> None:
    with pytest.raises(SettingsError, match="LLM_TRACES_REDACT: must be module:function"):
        Settings.from_environment({"LLM_TRACES_REDACT": "redact"})


@pytest.mark.usefixtures("hour")
def test_nothing_is_kept_where_the_function_raises(settings: Settings, store: BatchStore) -> None:
    for name, reason in (("failing", "raised ValueError;"), ("blank", "must return a str")):
        with pytest.raises(RedactionError, match=reason) as caught:
            load(settings, store, redact=f"tests.batches.test_privacy:{name}")
        assert "secret" not in str(caught.value)
    assert store.manifest(T0) is None


def failing(text: str) -> str:
    """What a user's function must not do."""
    raise ValueError(text)


def blank(text: str) -> None:
    """What a user's function must not do either."""
    assert text


def test_a_message_is_redacted_before_it_is_cut(
    operational: Operational, settings: Settings, store: BatchStore
) -> None:
    # A cut in the middle of the secret would hide it from the function.
    failure = f'{{"error": {{"message": "{"x" * 990}my secret is blue, and so on"}}}}'
    operational.insert("provider_traces", trace(id="a", response_json=failure))
    [row] = load(settings, store, redact="tests.batches.test_privacy:redact")["table"]
    assert row["error_message"] == f"{'x' * 990}my secret "
    whole = load(settings, store, redact="tests.batches.test_privacy:shorten")["table"]
    assert whole[0]["error_message"] == "my secret is blue, and so on"


def shorten(text: str) -> str:
    """A function that lets through what lies behind the cut."""
    return text.replace("x", "")


def test_an_erasure_counts_no_redacted_response_as_unreadable(
    operational: Operational, settings: Settings, store: BatchStore
) -> None:
    deep = "[" * 2000 + "]" * 2000
    operational.insert(
        "provider_traces",
        trace(id="a"),
        trace(id="b", organization_id="org-2", response_json=deep),
        trace(id="c", organization_id="org-2"),
        trace(id="d", organization_id="org-2", response_json=deep),
    )
    load(settings, store, redact="tests.batches.test_privacy:blot")
    manifest = store.manifest(T0)
    assert manifest
    assert (manifest.unreadable, manifest.unreadable_ids) == (2, ("b", "d"))
    now = datetime.now(UTC)
    erasure = Erasure(organization_id="org-1", agent_id=None, before=now, recorded_at=now)
    erase(settings, erasure)  # of a readable one
    manifest = store.manifest(T0)
    assert manifest
    assert (manifest.rows, manifest.unreadable, manifest.unreadable_ids) == (3, 2, ("b", "d"))


def blot(text: str) -> str:
    """A function that leaves no JSON."""
    return f"<{len(text)} characters>"
