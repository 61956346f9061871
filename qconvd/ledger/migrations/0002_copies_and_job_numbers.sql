-- A copy of a model waits for the artifact that is being made from the first one, and takes it over when it is done.
ALTER TABLE target ADD COLUMN waits_for TEXT NOT NULL DEFAULT '';  -- a target's id, or nothing
INSERT INTO transition (from_state, to_state) VALUES ('waiting', 'done');

CREATE TRIGGER target_taken_over BEFORE UPDATE OF state ON target
WHEN OLD.state = 'waiting' AND NEW.state = 'done' AND OLD.waits_for = ''
BEGIN
    SELECT RAISE(ABORT, 'this change of state is not allowed');
END;

-- Jobs are counted by themselves: 1, 2, 3, and not by what they want. Those that are there keep the numbers people know.
CREATE TABLE job_number (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source INTEGER NOT NULL REFERENCES source (id),
    recipe TEXT NOT NULL,
    UNIQUE (source, recipe)
) STRICT;

INSERT INTO job_number (id, source, recipe) SELECT id, source, recipe FROM job ORDER BY id;

CREATE TRIGGER job_numbered AFTER INSERT ON wanted BEGIN
    INSERT INTO job_number (source, recipe)
    SELECT target.source, NEW.recipe FROM target
    WHERE target.id = NEW.target
        AND NOT EXISTS (SELECT 1 FROM job_number WHERE source = target.source AND recipe = NEW.recipe);
END;

DROP VIEW job;

CREATE VIEW job AS
SELECT job_number.id AS id, job_number.source AS source, job_number.recipe AS recipe,
    min(target.created_at) AS created_at, max(target.changed_at) AS changed_at
FROM job_number
JOIN target ON target.source = job_number.source
JOIN wanted ON wanted.target = target.id AND wanted.recipe = job_number.recipe
GROUP BY job_number.id;
