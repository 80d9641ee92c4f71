-- Public keys of teams, by which SSH clients reach their sandboxes.

CREATE TABLE ssh_keys (
    id          TEXT COLLATE "C" PRIMARY KEY,
    team        TEXT COLLATE "C" NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name        TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    public_key  TEXT COLLATE "C" NOT NULL,
    created_at  BIGINT NOT NULL,
    UNIQUE (team, fingerprint)
);
