-- Public keys of teams, by which SSH clients reach their sandboxes.

CREATE TABLE ssh_keys (
    id          TEXT PRIMARY KEY,
    team        TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    public_key  TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    UNIQUE (team, fingerprint)
) STRICT;
