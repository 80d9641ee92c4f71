-- Secrets of teams. The values are encrypted with a key that is not in the database.

CREATE TABLE team_secrets (
    id            TEXT PRIMARY KEY,
    team          TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name          TEXT NOT NULL,
    version       INTEGER NOT NULL,
    metadata_json TEXT NOT NULL,
    sealed        BLOB NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    UNIQUE (team, name)
) STRICT;
CREATE INDEX team_secrets_team ON team_secrets (team, id);
