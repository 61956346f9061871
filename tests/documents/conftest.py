"""A ledger with a clock that stands still."""

from ledger_kit import bench, clock, ledger

__all__ = ["bench", "clock", "ledger"]
