-- +goose Up

-- The accounts that are few, among the many that are active and of people.
CREATE INDEX account_view_not_active ON account_view (tenant_id, created_at DESC, id DESC) WHERE status <> 'active';
CREATE INDEX account_view_not_user ON account_view (tenant_id, created_at DESC, id DESC) WHERE type <> 'USER';
