-- Who asks the operational database, and what it is. One row.
SELECT
    quote_ident(current_user) AS role,
    quote_ident(current_database()) AS database,
    current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS is_standby
