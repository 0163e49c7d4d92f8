-- +goose Up

-- Events that Kafka refuses, and those behind them in their streams: the checkpoint has passed them, and they wait for a person.
-- A stream with a row that is not done is a parked lane; all such rows of it have the same status.
CREATE TABLE outbox_parked (
    id             uuid PRIMARY KEY, -- the event's
    position       bigint NOT NULL,
    stream_type    text COLLATE "C" NOT NULL,
    stream_id      text COLLATE "C" NOT NULL,
    version        bigint NOT NULL,
    event_type     text COLLATE "C" NOT NULL,
    attempts       int NOT NULL,     -- 0 = not tried: it waits behind another one
    last_error     text,
    parked_at      timestamptz NOT NULL,
    status         text NOT NULL CHECK (status IN ('parked', 'requeued')),
    decided_at     timestamptz,      -- when a person last requeued it, who, and why
    decided_by     text,
    decided_reason text,
    done_at        timestamptz       -- when Kafka acknowledged it after all
);
CREATE UNIQUE INDEX outbox_parked_position ON outbox_parked (position);
CREATE INDEX outbox_parked_lane ON outbox_parked (stream_id, stream_type) WHERE done_at IS NULL;
CREATE INDEX outbox_parked_requeued ON outbox_parked (position) WHERE done_at IS NULL AND status = 'requeued';
CREATE INDEX outbox_parked_newest ON outbox_parked (parked_at, id);

-- The event that was refused last, and how often in a row: a relay that takes over goes on counting.
ALTER TABLE outbox_relay ADD COLUMN refused_position bigint NOT NULL DEFAULT 0;
ALTER TABLE outbox_relay ADD COLUMN refused_attempts int NOT NULL DEFAULT 0;
