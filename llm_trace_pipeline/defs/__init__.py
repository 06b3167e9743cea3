"""Dagster's side: assets, checks, jobs, schedules and sensors."""
