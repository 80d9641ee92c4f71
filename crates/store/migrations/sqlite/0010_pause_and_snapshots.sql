-- What a paused sandbox is brought back from, and what a build that is a snapshot was captured from.
ALTER TABLE sandboxes ADD COLUMN pause_json TEXT;
ALTER TABLE builds ADD COLUMN snapshot_json TEXT;
