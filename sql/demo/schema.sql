-- The tables of the agent server that the pipeline reads, as far as it reads them, for the demo's
-- PostgreSQL; and the billing table, which every deployment has under its own name. Types, keys and
-- indexes are those of the Letta server, but for three things the comments below name.
CREATE TABLE IF NOT EXISTS provider_traces (
    id varchar PRIMARY KEY,
    request_json json,
    response_json json,
    step_id varchar,
    agent_id varchar,
    agent_tags json,
    call_type varchar,
    run_id varchar,
    source varchar,
    org_id varchar,
    user_id varchar,
    compaction_settings json,
    llm_config json,
    -- Not in the open-source server: the billing details that came with the request itself.
    billing_context json,
    organization_id varchar NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    is_deleted bool NOT NULL DEFAULT false
);
CREATE INDEX IF NOT EXISTS ix_step_id ON provider_traces (step_id);
-- Letta does not ship an index on created_at, and a run is then a scan of the whole table: the
-- preflight asks for this one.
CREATE INDEX IF NOT EXISTS ix_provider_traces_created_at ON provider_traces (created_at);

-- A deployment that stores metadata only writes its traces here instead.
CREATE TABLE IF NOT EXISTS provider_trace_metadata (
    id varchar NOT NULL UNIQUE,
    step_id varchar,
    agent_id varchar,
    agent_tags json,
    call_type varchar,
    run_id varchar,
    source varchar,
    org_id varchar,
    user_id varchar,
    organization_id varchar NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    is_deleted bool NOT NULL DEFAULT false,
    -- Begins with created_at, so that this table needs no further index to find an hour.
    PRIMARY KEY (created_at, id)
);
CREATE INDEX IF NOT EXISTS ix_provider_trace_metadata_step_id ON provider_trace_metadata (step_id);

DO $$ BEGIN
    CREATE TYPE stepstatus AS ENUM ('PENDING', 'SUCCESS', 'FAILED', 'CANCELLED');
EXCEPTION WHEN duplicate_object THEN
    NULL;
END $$;
CREATE TABLE IF NOT EXISTS steps (
    id varchar PRIMARY KEY,
    organization_id varchar,
    project_id varchar,
    trace_id varchar,
    provider_name varchar,
    provider_category varchar,
    model varchar,
    model_handle varchar,
    prompt_tokens int NOT NULL DEFAULT 0,
    completion_tokens int NOT NULL DEFAULT 0,
    total_tokens int NOT NULL DEFAULT 0,
    cached_input_tokens int,
    cache_write_tokens int,
    reasoning_tokens int,
    stop_reason varchar,
    error_type varchar,
    error_data json,
    status stepstatus,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    is_deleted bool NOT NULL DEFAULT false
);

-- Not in the Letta server either: else every hour scans all steps for those without a trace.
CREATE INDEX IF NOT EXISTS ix_steps_created_at ON steps (created_at);

-- The id is that of the step.
CREATE TABLE IF NOT EXISTS step_metrics (
    id varchar PRIMARY KEY,
    llm_request_ns bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- One row per version of an organization's plan; a version holds from updated_at on.
CREATE TABLE IF NOT EXISTS organization_billing_details (
    organization_id varchar NOT NULL,
    plan_type varchar,
    cost_source varchar CHECK (cost_source IN ('quota', 'credits')),
    stripe_customer_id varchar,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz
);
CREATE INDEX IF NOT EXISTS ix_organization_billing_details_organization_id
ON organization_billing_details (organization_id);
