-- Which releases a group has had: one that was taken from it, or that another
-- succeeded, does not come back because its file is published again.

-- +goose Up
CREATE TABLE given_releases (
    group_name TEXT NOT NULL REFERENCES device_groups (name),
    digest     TEXT NOT NULL REFERENCES releases (digest),
    PRIMARY KEY (group_name, digest)
);
INSERT INTO given_releases (group_name, digest) SELECT group_name, digest FROM current_releases;

-- +goose Down
DROP TABLE given_releases;
