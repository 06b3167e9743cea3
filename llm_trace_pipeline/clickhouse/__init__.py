"""The tables in ClickHouse: how they are made, and how an hour is put into them whole."""
