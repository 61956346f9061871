-- Models on the Hub: a source whose locator is hub:owner/name[@revision]. What is known of it beside its row in `source`:
-- which commit it is, what must be fetched, and whether that is here.

-- A new kind of task. Of the table only the CHECK changes, which no row on disk depends on:
-- https://sqlite.org/lang_altertable.html#otheralter, the second procedure.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, '''plan'', ', '''plan'', ''fetch'', ') WHERE type = 'table' AND name = 'task';
PRAGMA writable_schema = RESET;

CREATE TABLE snapshot (
    source INTEGER PRIMARY KEY REFERENCES source (id),
    repo TEXT NOT NULL,                   -- owner/name
    commit_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('listed', 'here', 'freed')),
    heads TEXT NOT NULL,                  -- a folder: side files, and weights of which only the headers are there
    folder TEXT NOT NULL DEFAULT '',      -- a folder: the whole model, once it was fetched
    identity TEXT NOT NULL DEFAULT '',    -- the digest of that folder, as of a local model
    files TEXT NOT NULL,                  -- JSON: path, size, sha256, oid of each file that is needed
    nbytes INTEGER NOT NULL,              -- of these files
    fetched TEXT NOT NULL DEFAULT '[]',   -- JSON: those that were not in the cache before, which may be deleted again
    after TEXT NOT NULL DEFAULT 'keep' CHECK (after IN ('keep', 'delete')),
    changed_at REAL NOT NULL
) STRICT;
