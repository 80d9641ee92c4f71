-- Teams may be stopped by the operator; people belong to teams and have tokens of their own.

ALTER TABLE teams ADD COLUMN banned INTEGER NOT NULL DEFAULT 0;
-- Not null: blocked, and why.
ALTER TABLE teams ADD COLUMN blocked_reason TEXT;

CREATE TABLE users (
    id         TEXT PRIMARY KEY,
    email      TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE members (
    user_id  TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    team     TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    added_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, team)
) STRICT;

CREATE TABLE access_tokens (
    id         TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    mask_json  TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX access_tokens_user ON access_tokens (user_id);
