-- +goose Up

-- Snapshots kept for good, one for about 500 versions of a stream: what its past is folded from.
CREATE TABLE es_snapshot (
    stream_type text COLLATE "C" NOT NULL,
    stream_id   text COLLATE "C" NOT NULL,
    version     bigint NOT NULL,
    snapshot    bytea NOT NULL,
    PRIMARY KEY (stream_id, stream_type, version)
);
