"""The demo: an embedded PostgreSQL and its made-up traffic."""
