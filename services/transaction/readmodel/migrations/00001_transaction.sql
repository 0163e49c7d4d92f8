-- +goose Up

-- Transactions that have not ended, written with their events: what the sweep looks through for lost triggers.
CREATE TABLE transaction_pending (
    id         uuid PRIMARY KEY,
    created_at timestamptz NOT NULL
);

-- Read model: one row per transaction, folded from the published events.
CREATE TABLE transaction_view (
    id             uuid PRIMARY KEY,
    version        bigint NOT NULL,
    tenant_id      text COLLATE "C" NOT NULL,
    source_id      uuid NOT NULL,
    destination_id uuid NOT NULL,
    created_at     timestamptz NOT NULL,
    state          bytea NOT NULL -- the transaction as JSON
) WITH (fillfactor = 70);
CREATE INDEX transaction_view_newest ON transaction_view (tenant_id, created_at DESC, id DESC);
CREATE INDEX transaction_view_source ON transaction_view (source_id, created_at DESC, id DESC);
CREATE INDEX transaction_view_destination ON transaction_view (destination_id, created_at DESC, id DESC);
