-- Secrets of teams. The values are encrypted with a key that is not in the database.

CREATE TABLE team_secrets (
    id            TEXT COLLATE "C" PRIMARY KEY,
    team          TEXT COLLATE "C" NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name          TEXT COLLATE "C" NOT NULL,
    version       BIGINT NOT NULL,
    metadata_json TEXT NOT NULL,
    sealed        BYTEA NOT NULL,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL,
    UNIQUE (team, name)
);
CREATE INDEX team_secrets_team ON team_secrets (team, id);
