-- +goose Up

-- Messages that a subscription cannot handle, and those behind them with the same key: their offsets are committed, and they
-- wait for a person. A key with a row that is not done is a parked lane; all such rows of it have the same status.
CREATE TABLE inbox_parked (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    subscription   text COLLATE "C" NOT NULL,
    topic          text COLLATE "C" NOT NULL,
    key            bytea NOT NULL,
    partition      int NOT NULL,
    message_offset bigint NOT NULL,
    value          bytea,            -- the message, as it came
    header_names   bytea[] NOT NULL,
    header_values  bytea[] NOT NULL,
    sent_at        timestamptz NOT NULL, -- the message's time, within the years 1 to 9999
    -- What is known of it for people: from the event, or where that cannot be read, from the key and the headers.
    event_id       text,
    event_type     text NOT NULL,
    stream_type    text NOT NULL,
    stream_id      text NOT NULL,
    version        bigint NOT NULL,
    attempts       int NOT NULL,     -- 0 = not tried: it waits behind another one
    last_error     text,
    parked_at      timestamptz NOT NULL,
    status         text NOT NULL CHECK (status IN ('parked', 'requeued', 'discarded')),
    decided_at     timestamptz,      -- when a person last requeued or discarded it, who, and why
    decided_by     text,
    decided_reason text,
    done_at        timestamptz       -- when it was handled after all, or discarded
);
-- A message that comes again has its time again; another one with its offset, of a topic that was made anew, has another.
CREATE UNIQUE INDEX inbox_parked_message ON inbox_parked (subscription, topic, partition, message_offset, sent_at);
-- By the key's hash: an index takes no key of more than about 2,700 bytes.
CREATE INDEX inbox_parked_lane ON inbox_parked (subscription, topic, sha256(key)) WHERE done_at IS NULL;
CREATE INDEX inbox_parked_requeued ON inbox_parked (subscription) WHERE done_at IS NULL AND status = 'requeued';
CREATE INDEX inbox_parked_newest ON inbox_parked (parked_at, id);
