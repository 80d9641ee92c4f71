-- Why a build failed.
ALTER TABLE builds ADD COLUMN failure_json TEXT;
