"""Hourly LLM traces from PostgreSQL to ClickHouse, exact enough for an invoice."""
