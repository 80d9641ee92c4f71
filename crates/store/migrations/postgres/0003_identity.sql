-- Teams may be stopped by the operator; people belong to teams and have tokens of their own.

ALTER TABLE teams ADD COLUMN banned BOOLEAN NOT NULL DEFAULT FALSE;
-- Not null: blocked, and why.
ALTER TABLE teams ADD COLUMN blocked_reason TEXT;

CREATE TABLE users (
    id         TEXT COLLATE "C" PRIMARY KEY,
    email      TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE members (
    user_id  TEXT COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    team     TEXT COLLATE "C" NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    added_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, team)
);

CREATE TABLE access_tokens (
    id         TEXT COLLATE "C" PRIMARY KEY,
    user_id    TEXT COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    mask_json  TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX access_tokens_user ON access_tokens (user_id);
