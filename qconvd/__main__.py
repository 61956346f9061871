"""`python -m qconvd`."""

from __future__ import annotations

from qconvd.cli import main

main()
