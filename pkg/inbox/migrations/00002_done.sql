-- +goose Up

-- What the clean-up looks for.
-- allow: parked messages are few, so the index is made at once.
CREATE INDEX inbox_parked_done ON inbox_parked (done_at) WHERE done_at IS NOT NULL;
ALTER TABLE inbox_parked SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
