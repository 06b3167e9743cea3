"""What the tests share: a module for each noun. Fixtures stand in ``tests/conftest.py``."""

import os

START = "2026-01-01-00:00"
os.environ["LLM_TRACES_START"] = START  # what the partitions read when they are imported
