"""Executors place, start, watch and stop one attempt of a task; state, retries and priorities are the ledger's."""
