-- Notifications on their way: written with what they tell of, in one transaction, so that no crash loses one.
CREATE TABLE notification (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    notifier TEXT NOT NULL,               -- the name of an entry of `notify:` in the configuration
    news TEXT NOT NULL,                   -- JSON: what is told
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'failed', 'dropped')),
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',      -- of the last attempt that failed
    created_at REAL NOT NULL,
    changed_at REAL NOT NULL
) STRICT;

CREATE INDEX notification_waiting ON notification (notifier, id) WHERE state = 'waiting';
CREATE INDEX notification_over ON notification (changed_at) WHERE state != 'waiting';

-- How far the history was looked through, since when the pause lasts that was told of, and how many notifications came to which
-- end: rows of `notification` are pruned, a counter must not go back.
CREATE TABLE told (
    what TEXT PRIMARY KEY,
    mark REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- What was over before there were notifications is no news.
INSERT INTO told (what, mark) SELECT 'event', coalesce(max(id), 0) FROM event;
