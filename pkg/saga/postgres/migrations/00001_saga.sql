-- +goose Up
CREATE TABLE saga_state (
    saga_id    uuid PRIMARY KEY,
    tenant_id  text COLLATE "C" NOT NULL,
    saga_type  text COLLATE "C" NOT NULL,
    status     text COLLATE "C" NOT NULL,
    revision   bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    state      bytea NOT NULL -- the state's JSON
) WITH (fillfactor = 70);
CREATE INDEX saga_state_newest ON saga_state (tenant_id, created_at DESC, saga_id DESC);
-- Small, whatever the number of sagas that ended. updated_at is not in it, so that progress touches no index.
CREATE INDEX saga_state_unfinished ON saga_state (created_at, saga_id) WHERE status IN ('in_progress', 'compensating');
