-- +goose Up

-- Room on the page for each row's second state: a transaction's end then changes no index entry.
ALTER TABLE transaction_view SET (fillfactor = 50);
