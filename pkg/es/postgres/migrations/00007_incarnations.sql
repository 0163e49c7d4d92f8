-- +goose Up

-- The log's end is the newest event. A row that every commit updates would get slower with each commit since the oldest open
-- snapshot, because no vacuum may remove its old versions: es_event is only inserted into.
-- allow: a binary from before this migration must not append any more; it fails on the missing columns.
ALTER TABLE es_log DROP COLUMN position, DROP COLUMN recorded_at;

-- es_end is the position of the newest event; 0 = there is none.
-- +goose StatementBegin
CREATE FUNCTION es_end() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT position FROM es_event ORDER BY position DESC LIMIT 1), 0)
$$;
-- +goose StatementEnd

-- es_identity names the history that this database belongs to: the cluster, its timeline (a promoted standby begins a new one),
-- and the database within the cluster (a dump that was restored has another one). It fails on a standby, which has no timeline.
-- +goose StatementBegin
CREATE FUNCTION es_identity() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT system_identifier || '/' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) || '/'
           || (SELECT oid FROM pg_database WHERE datname = current_database())
    FROM pg_control_system()
$$;
-- +goose StatementEnd

-- The histories that this database has been through. Nothing is appended unless the newest row has the identity of the present,
-- so from_position is exactly where the log ended when a new incarnation began: an event beyond it that was seen under an older
-- incarnation is not part of the log any more.
CREATE TABLE es_incarnation (
    number        bigint PRIMARY KEY,
    identity      text COLLATE "C" NOT NULL,
    from_position bigint NOT NULL, -- where the log ended when this incarnation began
    known_to      bigint NOT NULL, -- highest position known of older incarnations; above from_position = something was lost
    noticed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    recovered_at  timestamptz      -- when an operator recovered from the loss
);
INSERT INTO es_incarnation (number, identity, from_position, known_to) SELECT 1, es_identity(), es_end(), es_end();

-- es_is_current: the incarnation is the newest one, and that of the present.
-- +goose StatementBegin
CREATE FUNCTION es_is_current(incarnation bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    newest es_incarnation;
BEGIN
    SELECT * INTO newest FROM es_incarnation ORDER BY number DESC LIMIT 1;
    RETURN newest.number = incarnation AND newest.identity = es_identity();
END $$;
-- +goose StatementEnd

-- es_append_to fails unless the writer knows the present incarnation.
-- +goose StatementBegin
CREATE FUNCTION es_append_to(incarnation bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT es_is_current(incarnation) THEN
        RAISE EXCEPTION 'the database has another history than the writer knows' USING ERRCODE = 'ES002';
    END IF;
END $$;
-- +goose StatementEnd

-- es_clock is the time to record at: after what was recorded last, and by the database's clock. It fails where that clock is
-- more than five minutes ahead both of what was recorded last and of the writer's clock: the time would stay on every event
-- that follows.
-- +goose StatementBegin
CREATE FUNCTION es_clock(last timestamptz, writer timestamptz) RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    now timestamptz := clock_timestamp();
BEGIN
    IF now > greatest(last, writer) + interval '5 minutes' THEN
        RAISE EXCEPTION 'the clock of the database says %, that of the writer %', now, writer USING ERRCODE = 'ES003';
    END IF;
    RETURN greatest(last + interval '1 microsecond', now);
END $$;
-- +goose StatementEnd

-- How long the lease was when it was written. One that ends later than that from now was written by a clock that was ahead: void.
ALTER TABLE outbox_relay ADD COLUMN leased_for interval NOT NULL DEFAULT '5 seconds';
