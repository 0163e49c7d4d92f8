-- +goose Up

-- Subscriptions: package subscription. The number of partitions never changes: another would break the order of a stream's events.
CREATE TABLE subscription (
    name       text COLLATE "C" PRIMARY KEY,
    partitions int NOT NULL CHECK (partitions > 0)
);

-- A partition's checkpoint and lease. An instance whose epoch is not this one can change nothing.
CREATE TABLE subscription_partition (
    name         text COLLATE "C" NOT NULL REFERENCES subscription,
    partition    int NOT NULL,
    position     bigint NOT NULL, -- everything of the partition up to here is handled
    epoch        bigint NOT NULL DEFAULT 0,
    owner        text COLLATE "C" NOT NULL DEFAULT '',
    leased_until timestamptz NOT NULL DEFAULT 'epoch',
    PRIMARY KEY (name, partition)
) WITH (fillfactor = 50); -- room on the page, so that updates stay there and touch no index

-- The instances that share the partitions, those without any too.
CREATE TABLE subscription_instance (
    name         text COLLATE "C" NOT NULL REFERENCES subscription,
    owner        text COLLATE "C" NOT NULL,
    leased_until timestamptz NOT NULL,
    PRIMARY KEY (name, owner)
);
