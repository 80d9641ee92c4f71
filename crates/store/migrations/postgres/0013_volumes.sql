-- Directory trees that outlive sandboxes; their content is on the disk, by id.

CREATE TABLE volumes (
    id             TEXT COLLATE "C" PRIMARY KEY,
    team           TEXT COLLATE "C" NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name           TEXT COLLATE "C" NOT NULL,
    size_limit_mib BIGINT,
    created_at     BIGINT NOT NULL,
    UNIQUE (team, name)
);
