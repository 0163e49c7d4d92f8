-- +goose Up

-- The sagas that have not ended, few beside all of them. They have a table of their own so that no index of saga_state names the
-- status: a saga's end then changes its row in place, and none of its index entries.
CREATE TABLE saga_open (
    saga_id    uuid PRIMARY KEY,
    created_at timestamptz NOT NULL
);
CREATE INDEX saga_open_oldest ON saga_open (created_at, saga_id);
INSERT INTO saga_open SELECT saga_id, created_at FROM saga_state WHERE status IN ('in_progress', 'compensating', 'needs_attention');
DROP INDEX saga_state_unfinished;
DROP INDEX saga_state_attention;
ALTER TABLE saga_state SET (
    fillfactor = 40,           -- room on the page for the state at the saga's end, which is larger than at its start
    toast_tuple_target = 8160  -- states are 2 KB, which is not worth compressing
);
