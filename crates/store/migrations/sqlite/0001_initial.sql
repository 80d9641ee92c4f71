-- Times are microseconds since the Unix epoch (UTC); ids are text as on the wire; *_json columns hold JSON.

CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE teams (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    slug        TEXT NOT NULL UNIQUE,
    limits_json TEXT NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    team       TEXT NOT NULL REFERENCES teams (id),
    name       TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    mask_json  TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used  INTEGER
) STRICT;
CREATE INDEX api_keys_team ON api_keys (team);

CREATE TABLE templates (
    id           TEXT PRIMARY KEY,
    team         TEXT REFERENCES teams (id),
    public       INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    spawn_count  INTEGER NOT NULL DEFAULT 0,
    last_spawned INTEGER
) STRICT;

-- An empty namespace is the global one.
CREATE TABLE template_names (
    namespace TEXT NOT NULL,
    alias     TEXT NOT NULL,
    template  TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    PRIMARY KEY (namespace, alias)
) STRICT;
CREATE INDEX template_names_template ON template_names (template);

CREATE TABLE builds (
    id           TEXT PRIMARY KEY,
    template     TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    status       TEXT NOT NULL,
    cpu_count    INTEGER NOT NULL,
    memory_mib   INTEGER NOT NULL,
    disk_mib     INTEGER NOT NULL,
    envd_version TEXT NOT NULL,
    layers_json  TEXT NOT NULL,
    config_json  TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    finished_at  INTEGER
) STRICT;
CREATE INDEX builds_template ON builds (template);

CREATE TABLE tag_assignments (
    template   TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    tag        TEXT NOT NULL,
    build      TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX tag_assignments_template ON tag_assignments (template, tag, created_at);

-- No foreign keys: a sandbox outlives the records it was made from.
CREATE TABLE sandboxes (
    id              TEXT PRIMARY KEY,
    team            TEXT NOT NULL,
    template        TEXT NOT NULL,
    build           TEXT NOT NULL,
    execution       TEXT NOT NULL,
    state           TEXT NOT NULL,
    started_at      INTEGER NOT NULL,
    end_at          INTEGER NOT NULL,
    ended_at        INTEGER,
    end_reason      TEXT,
    details_json    TEXT NOT NULL
) STRICT;
CREATE INDEX sandboxes_state ON sandboxes (state, started_at);

CREATE TABLE idempotency_keys (
    team       TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  BLOB NOT NULL,
    sandbox    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (team, key)
) STRICT;
