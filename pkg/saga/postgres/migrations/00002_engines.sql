-- +goose Up

-- The engines that live: each under an epoch of its own. A saga belongs to the epoch that is stored with it, until that engine's
-- row is gone and another takes the saga over. A write under another epoch than the stored one is refused.
CREATE TABLE saga_engine (
    epoch        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner        text NOT NULL,
    leased_until timestamptz NOT NULL
);

ALTER TABLE saga_state
    ADD COLUMN definition   int NOT NULL DEFAULT 1,    -- the version it started with
    ADD COLUMN epoch        bigint NOT NULL DEFAULT 0, -- 0 = nobody's
    ADD COLUMN wake_at      timestamptz,               -- nobody works on it before then
    ADD COLUMN error_reason text COLLATE "C",
    ADD COLUMN subjects     text[];
CREATE INDEX saga_state_attention ON saga_state (tenant_id, created_at DESC, saga_id DESC) WHERE status = 'needs_attention';
CREATE INDEX saga_state_subjects ON saga_state USING gin (subjects);
