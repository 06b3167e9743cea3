"""What the tests share: a module for each noun. Fixtures stand in ``tests/conftest.py``."""
