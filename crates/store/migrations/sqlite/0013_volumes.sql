-- Directory trees that outlive sandboxes; their content is on the disk, by id.

CREATE TABLE volumes (
    id             TEXT PRIMARY KEY,
    team           TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name           TEXT NOT NULL,
    size_limit_mib INTEGER,
    created_at     INTEGER NOT NULL,
    UNIQUE (team, name)
) STRICT;
