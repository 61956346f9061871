"""The daemon's log: what its lines look like, where they go, and what of them belongs to a job."""
