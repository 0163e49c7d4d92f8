-- +goose Up

-- What the list filters by. Rows of before are read from their state.
ALTER TABLE transaction_view
    ADD COLUMN type       text COLLATE "C",
    ADD COLUMN status     text COLLATE "C",
    ADD COLUMN currency   text COLLATE "C",
    ADD COLUMN amount     numeric,
    ADD COLUMN payment_id uuid,
    ADD COLUMN hold_status text COLLATE "C" NOT NULL DEFAULT '',
    ALTER COLUMN destination_id DROP NOT NULL;
UPDATE transaction_view SET (type, status, currency, amount) =
    (SELECT s ->> 'type', s ->> 'status', s ->> 'currency', (s ->> 'amount')::numeric FROM (SELECT convert_from(state, 'UTF8')::jsonb) AS x(s));
ALTER TABLE transaction_view
    ALTER COLUMN type SET NOT NULL,
    ALTER COLUMN status SET NOT NULL,
    ALTER COLUMN currency SET NOT NULL,
    ALTER COLUMN amount SET NOT NULL;
CREATE INDEX transaction_view_refunds ON transaction_view (payment_id, created_at DESC, id DESC) WHERE payment_id IS NOT NULL;
CREATE INDEX transaction_view_holds ON transaction_view (tenant_id, created_at DESC, id DESC) WHERE type = 'hold';

-- What is asked of pending transactions: which name an account, which are stuck, when the hold expires. There are few of them;
-- those of before this migration end without.
ALTER TABLE transaction_pending
    ADD COLUMN tenant_id      text COLLATE "C" NOT NULL DEFAULT 'default',
    ADD COLUMN type           text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN source_id      uuid,
    ADD COLUMN destination_id uuid,
    ADD COLUMN expires_at     timestamptz;

-- Holds that can expire, written with their events.
CREATE TABLE hold_open (
    id         uuid PRIMARY KEY,
    tenant_id  text COLLATE "C" NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX hold_open_expiry ON hold_open (expires_at, id);
