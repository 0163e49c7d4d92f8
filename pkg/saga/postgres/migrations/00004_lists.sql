-- +goose Up

-- What sagas can be found by, newest last for each: a page of a subject's sagas is as quick among many sagas as among few.
CREATE TABLE saga_subject (
    subject    text COLLATE "C" NOT NULL,
    started_at timestamptz NOT NULL, -- the saga's created_at
    id         uuid NOT NULL,        -- the saga's
    PRIMARY KEY (subject, started_at, id)
);
INSERT INTO saga_subject SELECT unnest(subjects), created_at, saga_id FROM saga_state ON CONFLICT DO NOTHING;
DROP INDEX saga_state_subjects;

-- Sagas that ended otherwise than they should, which are few. The column is null for all others, before their end and after it, so that
-- the index stays as it is when they end.
ALTER TABLE saga_state ADD COLUMN not_completed boolean GENERATED ALWAYS AS (CASE WHEN status IN ('failed', 'compensated') THEN true END) STORED;
CREATE INDEX saga_state_not_completed ON saga_state (tenant_id, created_at DESC, saga_id DESC) WHERE not_completed;
