SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Of this checkout, whatever the environment says; "make run LLM_TRACES_STATE=…" takes another one.
export LLM_TRACES_STATE := $(CURDIR)/.data
# Progress line by line, also through a pipe.
export PYTHONUNBUFFERED := 1
# uv does not compile the packages, so that Python must keep what it compiles: 2.4 s of each start.
export PYTHONDONTWRITEBYTECODE :=
# The statement of "make sql" reaches the shell as a variable, so that its quotes are its own.
override export Q := $(value Q)

PY := .venv/bin/python
LLM_TRACES := .venv/bin/llm-traces
# uv does not read pip's configuration: the index that a machine has set for pip is handed on.
INDEX = $${UV_INDEX_URL-$$(.venv/bin/pip config list | sed -n "s/.*\.index-url='\(.*\)'/\1/p" | \
	head -n 1)}
UV = UV_INDEX_URL="$(INDEX)" .venv/bin/uv

.PHONY: help
help:  ## show this list
	@grep -hE '^[.a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# One rule makes the environment; the stamp file keeps an interrupted install from counting as one.
# pip installs the locked uv, which installs the rest in seconds; pip took a minute.
.venv/installed: requirements.lock pyproject.toml
	@echo "Installing the locked packages into .venv"
	@python3 -m venv .venv
	@.venv/bin/pip install --quiet --no-deps --require-hashes \
		-r <(awk '/^[^ ]/ {found = /^uv==/} found' requirements.lock)
	@export UV_INDEX_URL="$(INDEX)" UV_PYTHON=.venv; \
		.venv/bin/uv pip install --quiet --no-deps --require-hashes -r requirements.lock; \
		.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: .venv
.venv: .venv/installed  ## make the virtual environment alone

LOCK = $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	--python-version 3.11

.PHONY: lock
lock: .venv/installed  ## pin the newest versions that pyproject.toml allows
	$(LOCK) --upgrade --extra all --group dev pyproject.toml -o requirements.lock
	$(LOCK) --upgrade --group pyproject.toml:bench -c requirements.lock -o bench/requirements.lock
	$(LOCK) --extra report --group deploy pyproject.toml -c requirements.lock \
		-o deploy/requirements.lock

# Dagster keeps watchdog below 7, and its last release before has no wheel for macOS and Python 3.14:
# there it is compiled. A dry run of an install asks the index alone, and fetches nothing.
.PHONY: check-lock
check-lock: .venv/installed  ## that the locks are wheels on Linux and macOS, Python 3.11 to 3.14
	@empty="$$(mktemp -d)"; trap 'rm -rf "$$empty"' EXIT; export UV_INDEX_URL="$(INDEX)"; \
	for lock in requirements.lock deploy/requirements.lock; do \
	for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin; do \
	for version in 3.11 3.12 3.13 3.14; do \
		compiled=; [[ $$platform$$version != *darwin3.14 ]] || compiled="--no-binary watchdog"; \
		$(UV) pip install --quiet --dry-run --target "$$empty" --no-deps --require-hashes \
			--only-binary :all: $$compiled --python-platform $$platform \
			--python-version $$version -r $$lock \
			|| { echo "$$lock: $$platform, Python $$version" >&2; exit 1; }; \
	done; done; done

.PHONY: lint
lint: .venv/installed  ## ruff, the strict type checker, and who may import whom
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

# What is loaded, on any server, and what goes wrong on the way to one.
LOADS := $(patsubst %,tests/clickhouse/test_%.py,layouts narrow_tables other_writers stops \
	tables upsert)
OVER_HTTP := $(patsubst %,tests/clickhouse/test_%.py,cluster cluster_statements faults service tls)
# What starts commands and services as a user does, and looks at them.
DEPLOYED := tests/cli/test_interrupted.py tests/defs/test_dagster_ui.py \
	tests/docs/test_commands.py tests/whole/test_deploy.py
# A load that is stopped after each of its statements, in every case: "make test-http" has them all.
STOPS := $(patsubst %,tests/clickhouse/test_stops.py::test_a_stop_%, \
	after_any_statement_is_made_good_by_the_next_load between_hours_that_are_loaded_together_is_made_good)

# A third worker on two cores: tests wait for servers, processes and locks a fifth of the time.
.PHONY: test
test: .venv/installed  ## the test suite, but for the parts that the next targets run
	.venv/bin/pytest -n 3 --dist worksteal $(addprefix --ignore ,$(OVER_HTTP) $(DEPLOYED)) \
		$(addprefix --deselect ,$(STOPS))

# What loads, with fewer random histories than "make test" has: the engine is the same.
.PHONY: test-server
test-server: .venv/installed  ## what loads, on the server that CLICKHOUSE_TEST_ENDPOINT names
	@test -n "$$CLICKHOUSE_TEST_ENDPOINT" || { echo "set CLICKHOUSE_TEST_ENDPOINT" >&2; exit 2; }
	SOAK_SEQUENCES="$${SEQUENCES:-24}" .venv/bin/pytest -n 2 $(LOADS) \
		tests/whole/test_reload.py tests/whole/test_model.py \
		tests/upkeep/test_erase.py tests/upkeep/test_retention.py

.PHONY: test-http
test-http: .venv/installed  ## the same over HTTP, on a server, a service and a cluster; what goes wrong
	@state="$$(mktemp -d)"; trap 'rm -rf "$$state"' EXIT; \
		$(PY) -m tests.harness.http_engine "$$state" $(MAKE) test-server
	@state="$$(mktemp -d)"; trap 'rm -rf "$$state"' EXIT; export SOAK_SEQUENCES=8 SOAK_KILLS=6; \
		$(PY) -m tests.harness.service "$$state" .venv/bin/pytest -n 2 \
		tests/whole/test_model.py tests/clickhouse/test_stops.py -k "equals_the_model or kills"
	.venv/bin/pytest -n 2 $(OVER_HTTP)

# What has times as keys or compares them, where clocks are half an hour off and go back by as much:
# batches, swaps, roll-ups, invoices, reconciliation, retention. The model's hours lie where Berlin's
# clocks go back. Left out is what is slow and asks no clock: kills, readers, a row of 1 GB.
ASKS_CLOCKS := $(patsubst %,tests/%.py,test_hours batches/test_extract \
	clickhouse/test_clocks clickhouse/test_narrow_tables clickhouse/test_rollup \
	clickhouse/test_upsert reports/test_invoice \
	source/test_snapshot upkeep/test_reconcile upkeep/test_retention whole/test_reload)

.PHONY: test-clocks
test-clocks: .venv/installed  ## what has times as keys, in zones whose clocks go back
	TZ=Australia/Lord_Howe .venv/bin/pytest -n 2 --dist worksteal $(ASKS_CLOCKS) \
		-k "not too_wide and not a_reader_sees and not stop_after_any"
	TZ=Europe/Berlin MODEL_SEED=1 SOAK_SEQUENCES=16 .venv/bin/pytest -n 2 tests/whole/test_model.py

.PHONY: test-deployed
test-deployed: .venv/installed  ## the commands of the pages, the UI in a browser, the deployed services
	.venv/bin/pytest -n 2 $(DEPLOYED)

.PHONY: test-installs
test-installs: .venv/installed  ## the wheel and the steps of the image, in fresh environments
	UV_INDEX_URL="$(INDEX)" .venv/bin/pytest -m installs tests/cli tests/whole

.PHONY: soak
soak: .venv/installed  ## random histories against the model (SEQUENCES=5000), kills (KILLS=500)
	SOAK_SEQUENCES="$${SEQUENCES:-5000}" SOAK_KILLS="$${KILLS:-500}" .venv/bin/pytest -n 2 \
		tests/whole/test_model.py tests/clickhouse/test_stops.py -k "equals_the_model or kills"

.PHONY: run
run: .venv/installed  ## demo data, the last 24 full hours through Dagster, a report
	@$(LLM_TRACES) run

.PHONY: dev
dev: .venv/installed  ## the Dagster UI, with the hourly schedule running (PORT=3000)
	@$(LLM_TRACES) dev $(if $(PORT),--port "$(PORT)")

.PHONY: docs
docs: .venv/installed  ## write the generated parts of the pages
	@$(PY) -m docs.generate

.PHONY: screenshot
screenshot: .venv/installed  ## take docs/ui.png from the real UI
	UI_SCREENSHOT=docs/ui.png .venv/bin/pytest tests/defs/test_dagster_ui.py -k screenshot

.PHONY: report-picture
report-picture: .venv/installed  ## take docs/report.png from a week of demo traffic
	REPORT_PICTURE=docs/report.png .venv/bin/pytest tests/reports/test_page.py -k picture

.PHONY: report
report: .venv/installed  ## what some days cost, as an HTML page: FROM=2026-03-01 TO=2026-03-31 (OUT=file)
	@$(LLM_TRACES) report --out "$(OUT)" -- "$(FROM)" "$(TO)"

.PHONY: backfill
backfill: .venv/installed  ## load a range of hours: FROM=2026-03-01-00:00 TO=2026-03-31-23:00
	@$(LLM_TRACES) backfill -- "$(FROM)" "$(TO)"

.PHONY: restore
restore: .venv/installed  ## rebuild ClickHouse from the Parquet batches alone: FROM=… TO=…
	@$(LLM_TRACES) restore -- "$(FROM)" "$(TO)"

.PHONY: sql
sql: .venv/installed  ## one statement on ClickHouse: Q="SELECT count() FROM llm_traces" (WRITE=1)
	@$(LLM_TRACES) sql $(if $(WRITE),--write) -- "$$Q"

.PHONY: invoice
invoice: .venv/installed  ## files for Stripe, by customer: MONTH=2026-03 (OUT=folder)
	@$(LLM_TRACES) invoice --out "$(OUT)" -- "$(MONTH)"

.PHONY: preflight
preflight: .venv/installed  ## what is missing at either end, with the exact repair
	@$(LLM_TRACES) preflight

.PHONY: bench
bench: .venv/installed  ## measure against the limit and two peers (DATA="wide narrow" RUNS=5)
	$(UV) pip install --quiet --python .venv --no-deps --require-hashes -r bench/requirements.lock
	@$(PY) -m bench $(DATA) $(if $(RUNS),--runs $(RUNS))
