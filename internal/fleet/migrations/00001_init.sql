-- Times are milliseconds since 1970 in UTC, hashes and digests lower-case
-- hexadecimal, flags 0 or 1. Types are those that SQLite and PostgreSQL share.

-- +goose Up
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- A token itself is never stored: its SHA-256 is enough to recognise it.
CREATE TABLE tokens (
    hash    TEXT PRIMARY KEY,
    role    TEXT NOT NULL,             -- operator, device
    device  TEXT NOT NULL DEFAULT '',  -- the only device that it speaks for; empty: any
    note    TEXT NOT NULL DEFAULT '',
    created BIGINT NOT NULL
);

CREATE TABLE releases (
    digest        TEXT PRIMARY KEY,
    product       TEXT NOT NULL,
    version       TEXT NOT NULL,
    envelope      TEXT NOT NULL,       -- what is signed, and the signatures
    bundle_sha256 TEXT NOT NULL,       -- the key of the release file
    bundle_size   BIGINT NOT NULL,
    bundle_md5    TEXT NOT NULL,
    checked       INTEGER NOT NULL,    -- the server checked the signatures
    published     BIGINT NOT NULL,
    replaced      BIGINT NOT NULL DEFAULT 0 -- when another release took its product and version
);
CREATE INDEX releases_version ON releases (product, version);

CREATE TABLE images (
    digest    TEXT NOT NULL REFERENCES releases (digest),
    component TEXT NOT NULL,
    md5       TEXT NOT NULL,
    PRIMARY KEY (digest, component)
);

-- "groups" is a keyword of SQL:2011.
CREATE TABLE device_groups (
    name    TEXT PRIMARY KEY,
    created BIGINT NOT NULL
);

CREATE TABLE current_releases (
    group_name TEXT NOT NULL REFERENCES device_groups (name),
    product    TEXT NOT NULL,
    digest     TEXT NOT NULL REFERENCES releases (digest),
    since      BIGINT NOT NULL,
    PRIMARY KEY (group_name, product)
);

CREATE TABLE devices (
    id         TEXT PRIMARY KEY,
    group_name TEXT NOT NULL REFERENCES device_groups (name),
    first_seen BIGINT NOT NULL,
    last_seen  BIGINT NOT NULL,
    said       TEXT NOT NULL           -- JSON of the last check-in or status
);

-- One row for each outcome, however often it is delivered. A report's id is
-- unique within its device only, or one device could swallow another's reports.
CREATE TABLE reports (
    device   TEXT NOT NULL REFERENCES devices (id),
    id       TEXT NOT NULL,
    serial   BIGINT NOT NULL,          -- order of arrival
    received BIGINT NOT NULL,
    digest   TEXT NOT NULL,
    result   TEXT NOT NULL,
    report   TEXT NOT NULL,            -- JSON, as delivered
    PRIMARY KEY (device, id)
);
CREATE INDEX reports_by_arrival ON reports (device, serial);

-- +goose Down
DROP TABLE reports;
DROP TABLE devices;
DROP TABLE current_releases;
DROP TABLE device_groups;
DROP TABLE images;
DROP TABLE releases;
DROP TABLE tokens;
DROP TABLE settings;
