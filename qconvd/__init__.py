"""qconvd: a daemon that turns models into the formats people run."""

__version__ = "0.1.0"
