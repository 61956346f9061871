"""Whether an artifact is what it claims to be."""
