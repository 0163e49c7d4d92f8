-- +goose Up

-- One row: the end of the log. Every append takes its positions here, under this row's lock, held to the commit: commit
-- order is position order, and positions have no gaps.
CREATE TABLE es_log (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    position    bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    -- Key of the hashes that derive ids from idempotency keys, so that nobody can guess an id from a key.
    secret      bytea NOT NULL DEFAULT decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex')
);
INSERT INTO es_log (position, recorded_at) VALUES (0, 'epoch');

CREATE TABLE es_head (
    stream_type      text COLLATE "C" NOT NULL,
    stream_id        text COLLATE "C" NOT NULL,
    version          bigint NOT NULL,
    snapshot         bytea,
    snapshot_version bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (stream_id, stream_type)
) WITH (fillfactor = 80); -- room on the page, so that updates stay there and touch no index

CREATE TABLE es_event (
    position       bigint PRIMARY KEY,
    event_id       uuid NOT NULL,
    stream_type    text COLLATE "C" NOT NULL,
    stream_id      text COLLATE "C" NOT NULL,
    version        bigint NOT NULL,
    event_type     text COLLATE "C" NOT NULL,
    correlation_id text NOT NULL,
    recorded_at    timestamptz NOT NULL,
    payload        bytea NOT NULL -- the event's JSON, published verbatim
);
CREATE UNIQUE INDEX es_event_id ON es_event (event_id);
CREATE UNIQUE INDEX es_event_stream ON es_event (stream_id, version, stream_type);
CREATE INDEX es_event_recorded ON es_event USING brin (recorded_at);

-- One row per group commit, written in its transaction.
CREATE TABLE outbox_batch (
    from_position bigint PRIMARY KEY,
    to_position   bigint NOT NULL,
    events        int NOT NULL,
    created_at    timestamptz NOT NULL
);

-- One row: the relay's checkpoint and lease. A relay whose epoch is not this one can change nothing.
CREATE TABLE outbox_relay (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    position     bigint NOT NULL DEFAULT 0, -- everything up to here is acknowledged by Kafka
    epoch        bigint NOT NULL DEFAULT 0,
    owner        text NOT NULL DEFAULT '',
    leased_until timestamptz NOT NULL DEFAULT 'epoch',
    retries      int NOT NULL DEFAULT 0,
    failed       int NOT NULL DEFAULT 0,
    last_error   text,
    processed_at timestamptz
);
INSERT INTO outbox_relay DEFAULT VALUES;
