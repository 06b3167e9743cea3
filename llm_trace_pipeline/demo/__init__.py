"""The demo: an embedded PostgreSQL with made-up traffic."""
