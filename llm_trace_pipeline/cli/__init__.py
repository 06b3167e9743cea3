"""The command ``llm-traces``."""
