-- Where artifacts are published. A target is done when every place that its recipes name has it.

-- A new kind of task. Of the table only the CHECK changes, which no row on disk depends on:
-- https://sqlite.org/lang_altertable.html#otheralter, the second procedure.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, '''verify'')', '''verify'', ''publish'')') WHERE type = 'table' AND name = 'task';
PRAGMA writable_schema = RESET;

CREATE TABLE publication (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL REFERENCES target (id),
    destination TEXT NOT NULL,            -- hub:owner/name or folder:/a/folder
    revision TEXT NOT NULL,               -- a branch; empty for a folder
    recipe TEXT NOT NULL,
    options TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN
        ('open', 'awaiting', 'publishing', 'done', 'rehearsed', 'failed', 'cancelled', 'unwanted')),
    reason TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '{}',
    confirmed INTEGER NOT NULL DEFAULT 0 CHECK (confirmed IN (0, 1)),
    commit_id TEXT NOT NULL DEFAULT '',
    failures INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,   -- of its own: one place that is away holds up no other
    task INTEGER REFERENCES task (id),    -- the open task that it is in
    created_at REAL NOT NULL,
    changed_at REAL NOT NULL,
    UNIQUE (target, destination, revision)
) STRICT;

CREATE INDEX publication_open ON publication (state) WHERE state IN ('open', 'awaiting', 'publishing');
CREATE INDEX publication_task ON publication (task) WHERE task IS NOT NULL;
CREATE INDEX publication_place ON publication (destination, revision);

INSERT INTO transition (from_state, to_state) VALUES
    ('ready', 'publishing'), ('publishing', 'ready'), ('publishing', 'done'), ('publishing', 'failed'),
    ('publishing', 'cancelled'), ('publishing', 'superseded'),
    ('failed', 'ready'), ('cancelled', 'ready'), ('done', 'ready'), ('waiting', 'ready');

-- As target_taken_over: only a copy's artifact makes a target ready that was never begun.
CREATE TRIGGER target_taken_over_to_publish BEFORE UPDATE OF state ON target
WHEN OLD.state = 'waiting' AND NEW.state = 'ready' AND OLD.waits_for = ''
BEGIN
    SELECT RAISE(ABORT, 'this change of state is not allowed');
END;
