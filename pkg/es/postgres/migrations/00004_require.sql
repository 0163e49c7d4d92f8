-- +goose Up

-- Fails a transaction that was sent whole, where it is not what its sender took for granted.
-- +goose StatementBegin
CREATE FUNCTION es_require(ok boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT ok THEN
        RAISE EXCEPTION 'not as expected' USING ERRCODE = 'ES001';
    END IF;
END $$;
-- +goose StatementEnd
