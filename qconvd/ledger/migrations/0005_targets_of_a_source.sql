-- What is asked most: the targets of one model. Without it each such question reads every target that there ever was.
CREATE INDEX target_source ON target (source);
