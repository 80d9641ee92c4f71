-- What happened to sandboxes, who wants to hear of it, and what is still on its way to them.
-- Events keep no foreign key: they outlive sandbox and team.

CREATE TABLE events (
    id        TEXT PRIMARY KEY,
    team      TEXT NOT NULL,
    sandbox   TEXT NOT NULL,
    kind      TEXT NOT NULL,
    at        INTEGER NOT NULL,
    body_json TEXT NOT NULL
) STRICT;
CREATE INDEX events_team ON events (team, at);
CREATE INDEX events_sandbox ON events (sandbox, at);
CREATE INDEX events_at ON events (at);

CREATE TABLE webhooks (
    id          TEXT PRIMARY KEY,
    team        TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    url         TEXT NOT NULL,
    enabled     INTEGER NOT NULL,
    events_json TEXT NOT NULL,
    secret      TEXT NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE deliveries (
    id       TEXT PRIMARY KEY,
    webhook  TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event    TEXT NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    attempts INTEGER NOT NULL,
    due_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX deliveries_webhook ON deliveries (webhook, due_at);
CREATE INDEX deliveries_event ON deliveries (event);
