"""Immutable Parquet batches, and what lies beside them."""
