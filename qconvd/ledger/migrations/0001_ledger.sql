-- Times are seconds since 1970 (UTC). JSON columns hold objects. Nothing is ever deleted from source, target or event.

CREATE TABLE source (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    locator TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('present', 'refused', 'gone', 'replaced')),
    reason TEXT NOT NULL,
    error TEXT NOT NULL DEFAULT '{}',
    created_at REAL NOT NULL,
    changed_at REAL NOT NULL,
    UNIQUE (locator, version)
) STRICT;

CREATE UNIQUE INDEX source_live ON source (locator) WHERE state != 'replaced';

CREATE TABLE target (
    id TEXT PRIMARY KEY,
    source INTEGER NOT NULL REFERENCES source (id),
    format TEXT NOT NULL,
    options TEXT NOT NULL,
    spec_digest TEXT NOT NULL,
    device TEXT NOT NULL CHECK (device IN ('auto', 'cpu', 'cuda')),
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL DEFAULT '{}',
    failures INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    version TEXT NOT NULL,                -- of the format; not part of spec_digest
    label TEXT NOT NULL,
    plan TEXT NOT NULL DEFAULT '{}',      -- what the plan task said of it
    folder TEXT NOT NULL,
    stem TEXT NOT NULL,
    manifest_name TEXT NOT NULL,
    artifact TEXT NOT NULL DEFAULT '{}',  -- what the verify task said of it
    created_at REAL NOT NULL,
    changed_at REAL NOT NULL
) STRICT;

-- One live target per source and specification: this index, not a look before the insert, keeps work from being done twice.
CREATE UNIQUE INDEX target_live ON target (source, spec_digest) WHERE state != 'superseded';
CREATE INDEX target_state ON target (state);
CREATE INDEX target_place ON target (folder, manifest_name);

CREATE TABLE transition (
    from_state TEXT NOT NULL,
    to_state TEXT NOT NULL,
    PRIMARY KEY (from_state, to_state)
) STRICT, WITHOUT ROWID;

INSERT INTO transition (from_state, to_state) VALUES
    ('waiting', 'planned'), ('waiting', 'failed'), ('waiting', 'cancelled'), ('waiting', 'superseded'),
    ('planned', 'waiting'), ('planned', 'converting'), ('planned', 'failed'), ('planned', 'cancelled'), ('planned', 'superseded'),
    ('converting', 'verifying'), ('converting', 'planned'), ('converting', 'failed'), ('converting', 'cancelled'),
    ('converting', 'superseded'),
    ('verifying', 'ready'), ('verifying', 'planned'), ('verifying', 'failed'), ('verifying', 'cancelled'),
    ('verifying', 'superseded'),
    ('ready', 'done'), ('ready', 'failed'), ('ready', 'cancelled'), ('ready', 'superseded'),
    ('done', 'waiting'), ('done', 'superseded'),
    ('failed', 'waiting'), ('failed', 'superseded'),
    ('cancelled', 'waiting'), ('cancelled', 'superseded');

CREATE TRIGGER target_transition BEFORE UPDATE OF state ON target
WHEN NEW.state != OLD.state
    AND NOT EXISTS (SELECT 1 FROM transition WHERE from_state = OLD.state AND to_state = NEW.state)
BEGIN
    SELECT RAISE(ABORT, 'this change of state is not allowed');
END;

CREATE TABLE wanted (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL REFERENCES target (id),
    recipe TEXT NOT NULL,
    current INTEGER NOT NULL DEFAULT 1 CHECK (current IN (0, 1)),
    UNIQUE (target, recipe)
) STRICT;

CREATE INDEX wanted_recipe ON wanted (recipe);

-- A job is what a person sees: one source and one recipe. Its number is that of the first thing wanted, so it never changes.
CREATE VIEW job AS
SELECT min(wanted.id) AS id, target.source AS source, wanted.recipe AS recipe,
    min(target.created_at) AS created_at, max(target.changed_at) AS changed_at
FROM wanted JOIN target ON target.id = wanted.target
GROUP BY target.source, wanted.recipe;

CREATE TABLE task (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('plan', 'convert', 'verify')),
    source INTEGER NOT NULL REFERENCES source (id),
    device TEXT NOT NULL CHECK (device IN ('auto', 'cpu', 'cuda')),
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    reason TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,
    handle TEXT NOT NULL DEFAULT '',
    placed TEXT NOT NULL DEFAULT '{}',
    lease_until REAL NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    need TEXT NOT NULL DEFAULT '{}',
    created_at REAL NOT NULL,
    changed_at REAL NOT NULL
) STRICT;

CREATE INDEX task_open ON task (state) WHERE state IN ('queued', 'running');

CREATE TABLE task_target (
    task INTEGER NOT NULL REFERENCES task (id),
    target TEXT NOT NULL REFERENCES target (id),
    PRIMARY KEY (task, target)
) STRICT, WITHOUT ROWID;

CREATE INDEX task_target_target ON task_target (target);

CREATE TRIGGER task_target_once BEFORE INSERT ON task_target
WHEN EXISTS (
    SELECT 1 FROM task_target JOIN task ON task.id = task_target.task
    WHERE task_target.target = NEW.target AND task.state IN ('queued', 'running')
)
BEGIN
    SELECT RAISE(ABORT, 'the target is in an open task already');
END;

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    source INTEGER REFERENCES source (id),
    target TEXT REFERENCES target (id),
    task INTEGER REFERENCES task (id),
    from_state TEXT NOT NULL,
    to_state TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;

CREATE INDEX event_target ON event (target);
CREATE INDEX event_task ON event (task);

CREATE TRIGGER target_made AFTER INSERT ON target BEGIN
    INSERT INTO event (at, source, target, from_state, to_state, reason)
    VALUES (NEW.changed_at, NEW.source, NEW.id, '', NEW.state, NEW.reason);
END;

CREATE TRIGGER target_changed AFTER UPDATE OF state ON target WHEN NEW.state != OLD.state BEGIN
    INSERT INTO event (at, source, target, from_state, to_state, reason)
    VALUES (NEW.changed_at, NEW.source, NEW.id, OLD.state, NEW.state, NEW.reason);
END;

CREATE TRIGGER task_changed AFTER UPDATE OF state ON task WHEN NEW.state != OLD.state BEGIN
    INSERT INTO event (at, source, task, from_state, to_state, reason)
    VALUES (NEW.changed_at, NEW.source, NEW.id, OLD.state, NEW.state, NEW.reason);
END;

CREATE TRIGGER source_made AFTER INSERT ON source BEGIN
    INSERT INTO event (at, source, from_state, to_state, reason) VALUES (NEW.changed_at, NEW.id, '', NEW.state, NEW.reason);
END;

CREATE TRIGGER source_changed AFTER UPDATE OF state ON source WHEN NEW.state != OLD.state BEGIN
    INSERT INTO event (at, source, from_state, to_state, reason)
    VALUES (NEW.changed_at, NEW.id, OLD.state, NEW.state, NEW.reason);
END;

CREATE TABLE request (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    arguments TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'refused')),
    answer TEXT NOT NULL DEFAULT '',
    created_at REAL NOT NULL,
    answered_at REAL NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX request_open ON request (state) WHERE state = 'open';
