-- +goose Up

-- Sums per currency, written with the events they sum (package books).
CREATE TABLE book_total (
    currency       text COLLATE "C" PRIMARY KEY,
    user_total     numeric NOT NULL,
    external_total numeric NOT NULL,
    system_total   numeric NOT NULL,
    in_transit     numeric NOT NULL
) WITH (fillfactor = 50);

-- Read model: one row per account, folded from the published events.
CREATE TABLE account_view (
    id         uuid PRIMARY KEY,
    version    bigint NOT NULL,
    tenant_id  text COLLATE "C" NOT NULL,
    owner_id   text COLLATE "C" NOT NULL,
    owner_type text COLLATE "C" NOT NULL,
    type       text COLLATE "C" NOT NULL,
    currency   text COLLATE "C" NOT NULL,
    status     text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    state      bytea NOT NULL -- the account as JSON
) WITH (fillfactor = 80);
CREATE INDEX account_view_newest ON account_view (tenant_id, created_at DESC, id DESC);
CREATE INDEX account_view_owner ON account_view (tenant_id, owner_id, created_at DESC, id DESC);
