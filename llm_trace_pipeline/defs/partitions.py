"""What definitions are made of. Read at import: partitions, owners, where things lie."""

import dagster as dg

from llm_trace_pipeline.demo.traffic import first_hour_of
from llm_trace_pipeline.settings import Settings

SETTINGS = Settings.from_environment()

_first_hour = first_hour_of(SETTINGS)

HOURLY = dg.HourlyPartitionsDefinition(start_date=_first_hour, timezone="UTC")
# The first day counts, also where its first hours do not.
DAILY = dg.DailyPartitionsDefinition(start_date=_first_hour.replace(hour=0), timezone="UTC")
SCHEDULE_MINUTE = SETTINGS.schedule_minute
OWNERS = list(SETTINGS.owners) or None
