-- How far a standby is. One row.
--
-- replayed_until when the last transaction that it has replayed was committed; an idle primary leaves
--                it old although nothing is missing, hence
-- is_caught_up   whether everything that came over a living connection is replayed
-- is_paused      whether somebody has stopped the replay
SELECT
    pg_last_xact_replay_timestamp() AS replayed_until,
    coalesce(pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn(), false)
        AND EXISTS (SELECT FROM pg_stat_wal_receiver) AS is_caught_up,
    pg_is_wal_replay_paused() AS is_paused
