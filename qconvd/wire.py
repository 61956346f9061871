"""What a daemon's HTTP port and whoever asks it have to agree on. It imports nothing, so either side may have it."""

from __future__ import annotations

PREFIX = "/api/v1"
UNIX = "unix:"
"""What the address of a socket with a path begins with."""
NOTHING = "there is nothing here"
"""What a daemon says of a path that it does not have."""
WAIT = 10.0
"""Seconds to wait for the daemon's answer to a request; it looks twice a second."""
LOOK = 0.05
"""Seconds between two looks whether it has answered."""
