"""The tables in ClickHouse, and how an hour gets into them."""
