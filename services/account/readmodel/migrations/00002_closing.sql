-- +goose Up

-- Accounts that are closing, written with their events: what is looked through for those whose last transaction has ended.
CREATE TABLE account_closing (
    id        uuid PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL
);
