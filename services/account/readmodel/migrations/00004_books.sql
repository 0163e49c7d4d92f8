-- +goose Up

-- What each commit adds to the books: one small row a currency, only ever inserted. A row of book_total that each commit
-- updates has one more dead version for each commit since the oldest open snapshot, and each commit reads through all of
-- them. The books are book_total plus these rows; a roll-up moves them there (package books).
CREATE TABLE book_delta (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in the order of the commits: taken under the log's lock
    currency       text COLLATE "C" NOT NULL,
    user_total     numeric NOT NULL,
    external_total numeric NOT NULL,
    system_total   numeric NOT NULL,
    in_transit     numeric NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_insert_threshold = -1,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000, autovacuum_vacuum_cost_delay = 0);

-- One row: no row of book_delta is left up to this id. Readers start behind it, and not with the dead rows before it.
CREATE TABLE book_rolled (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    up_to    bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
INSERT INTO book_rolled DEFAULT VALUES;

-- Few rows that change again and again, and rows that come and go.
ALTER TABLE book_total SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE book_rolled SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE account_closing SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
