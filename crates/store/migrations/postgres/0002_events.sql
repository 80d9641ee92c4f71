-- What happened to sandboxes, who wants to hear of it, and what is still on its way to them.
-- Events keep no foreign key: they outlive sandbox and team.

CREATE TABLE events (
    id        TEXT COLLATE "C" PRIMARY KEY,
    team      TEXT NOT NULL,
    sandbox   TEXT NOT NULL,
    kind      TEXT NOT NULL,
    at        BIGINT NOT NULL,
    body_json TEXT NOT NULL
);
CREATE INDEX events_team ON events (team, at);
CREATE INDEX events_sandbox ON events (sandbox, at);
CREATE INDEX events_at ON events (at);

CREATE TABLE webhooks (
    id          TEXT COLLATE "C" PRIMARY KEY,
    team        TEXT COLLATE "C" NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    url         TEXT NOT NULL,
    enabled     BOOLEAN NOT NULL,
    events_json TEXT NOT NULL,
    secret      TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);

CREATE TABLE deliveries (
    id       TEXT COLLATE "C" PRIMARY KEY,
    webhook  TEXT COLLATE "C" NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event    TEXT COLLATE "C" NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    attempts BIGINT NOT NULL,
    due_at   BIGINT NOT NULL
);
CREATE INDEX deliveries_webhook ON deliveries (webhook, due_at);
CREATE INDEX deliveries_event ON deliveries (event);
