-- Times are microseconds since the Unix epoch (UTC); ids are text as on the wire; *_json columns hold JSON.
-- What is ordered by is compared byte by byte, as SQLite does.

CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE teams (
    id          TEXT COLLATE "C" PRIMARY KEY,
    name        TEXT NOT NULL,
    slug        TEXT NOT NULL UNIQUE,
    limits_json TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id         TEXT COLLATE "C" PRIMARY KEY,
    team       TEXT COLLATE "C" NOT NULL REFERENCES teams (id),
    name       TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    mask_json  TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_used  BIGINT
);
CREATE INDEX api_keys_team ON api_keys (team);

CREATE TABLE templates (
    id           TEXT COLLATE "C" PRIMARY KEY,
    team         TEXT COLLATE "C" REFERENCES teams (id),
    public       BOOLEAN NOT NULL,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    spawn_count  BIGINT NOT NULL DEFAULT 0,
    last_spawned BIGINT
);

-- An empty namespace is the global one.
CREATE TABLE template_names (
    namespace TEXT COLLATE "C" NOT NULL,
    alias     TEXT COLLATE "C" NOT NULL,
    template  TEXT COLLATE "C" NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    PRIMARY KEY (namespace, alias)
);
CREATE INDEX template_names_template ON template_names (template);

CREATE TABLE builds (
    id           TEXT COLLATE "C" PRIMARY KEY,
    template     TEXT COLLATE "C" NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    status       TEXT NOT NULL,
    cpu_count    BIGINT NOT NULL,
    memory_mib   BIGINT NOT NULL,
    disk_mib     BIGINT NOT NULL,
    envd_version TEXT NOT NULL,
    layers_json  TEXT NOT NULL,
    config_json  TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    finished_at  BIGINT
);
CREATE INDEX builds_template ON builds (template);

CREATE TABLE tag_assignments (
    template   TEXT COLLATE "C" NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    tag        TEXT NOT NULL,
    build      TEXT COLLATE "C" NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    -- SQLite has one by itself, of this name.
    rowid      BIGINT GENERATED ALWAYS AS IDENTITY
);
CREATE INDEX tag_assignments_template ON tag_assignments (template, tag, created_at);
CREATE INDEX tag_assignments_build ON tag_assignments (build);

-- No foreign keys: a sandbox outlives the records it was made from.
CREATE TABLE sandboxes (
    id           TEXT COLLATE "C" PRIMARY KEY,
    team         TEXT NOT NULL,
    template     TEXT NOT NULL,
    build        TEXT NOT NULL,
    execution    TEXT NOT NULL,
    state        TEXT NOT NULL,
    started_at   BIGINT NOT NULL,
    end_at       BIGINT NOT NULL,
    ended_at     BIGINT,
    end_reason   TEXT,
    details_json TEXT NOT NULL
);
CREATE INDEX sandboxes_state ON sandboxes (state, started_at);

CREATE TABLE idempotency_keys (
    team       TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  BYTEA NOT NULL,
    sandbox    TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (team, key)
);
