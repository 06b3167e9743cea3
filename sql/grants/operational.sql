-- The least that the pipeline needs of the operational PostgreSQL: a role that reads five tables.
-- Run it as the owner of the tables, in their database, and give the role a way in, such as
-- ALTER ROLE llm_traces_reader PASSWORD '…'. Leave out a table that your deployment lacks, and say
-- USAGE on the schema where that is not public.
CREATE ROLE llm_traces_reader LOGIN;
GRANT USAGE ON SCHEMA public TO llm_traces_reader;
GRANT SELECT ON
    provider_traces,
    provider_trace_metadata,
    steps,
    step_metrics,
    organization_billing_details
TO llm_traces_reader;
