"""`qconvd schema`."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON Schema of config.yaml, for editors.

    It holds the options of every installed format.
    """
    from qconvd.cli import output
    from qconvd.schema import schema as build

    output.as_json(build())
