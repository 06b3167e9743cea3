"""The hourly partitions. Read at import, since Dagster needs to know where they begin."""

from dagster import HourlyPartitionsDefinition

from llm_trace_pipeline.demo import first_hour
from llm_trace_pipeline.settings import Settings

_settings = Settings.from_environment()

HOURLY = HourlyPartitionsDefinition(
    start_date=_settings.first_hour or first_hour(_settings.state_dir), timezone="UTC"
)
SCHEDULE_MINUTE = _settings.schedule_minute
