"""A daemon as the command line meets it: over its HTTP API, or in the ledger that it keeps or has left."""

from qconvd.client.base import Answer, Daemon, Document

__all__ = ["Answer", "Daemon", "Document"]
