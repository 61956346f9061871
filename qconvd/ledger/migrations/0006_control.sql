-- Why no task is started, for as long as there is a row. What somebody paused by hand stays so until somebody resumes it.
CREATE TABLE pause (
    cause TEXT PRIMARY KEY CHECK (cause IN ('by hand', 'quiet hours', 'disk')),
    reason TEXT NOT NULL,
    since REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- Of tasks of one kind, those of a job with a higher number go first.
ALTER TABLE job_number ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;

DROP VIEW job;

CREATE VIEW job AS
SELECT job_number.id AS id, job_number.source AS source, job_number.recipe AS recipe, job_number.priority AS priority,
    min(target.created_at) AS created_at, max(target.changed_at) AS changed_at
FROM job_number
JOIN target ON target.source = job_number.source
JOIN wanted ON wanted.target = target.id AND wanted.recipe = job_number.recipe
GROUP BY job_number.id;
