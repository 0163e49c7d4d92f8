-- +goose Up

-- The event store that this database follows; '' = none: it is the truth itself. Two that append to their own truths in turn would make two
-- histories of one.
ALTER TABLE es_log ADD COLUMN follows text NOT NULL DEFAULT '';

-- How many of the newest events are not in the tables that are inline: more than none after events were copied here by something that does not
-- know them.
ALTER TABLE es_log ADD COLUMN not_inlined bigint NOT NULL DEFAULT 0;

-- One row: who leads an event store that has one leader, and where the others send their requests.
CREATE TABLE es_leader (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    holder       text NOT NULL DEFAULT '', -- a process
    address      text NOT NULL DEFAULT '', -- where it serves gRPC
    leased_until timestamptz NOT NULL DEFAULT 'epoch'
);
INSERT INTO es_leader DEFAULT VALUES;
