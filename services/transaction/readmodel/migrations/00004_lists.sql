-- +goose Up

-- Transactions that ended otherwise than they should, which are few. The column is null for all others, before their end and after it, so
-- that the index stays as it is when they end.
ALTER TABLE transaction_view ADD COLUMN not_completed boolean GENERATED ALWAYS AS (CASE WHEN status IN ('failed', 'compensated') THEN true END) STORED;
CREATE INDEX transaction_view_not_completed ON transaction_view (tenant_id, created_at DESC, id DESC) WHERE not_completed;
