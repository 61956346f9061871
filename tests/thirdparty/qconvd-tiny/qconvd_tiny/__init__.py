"""A qconvd plugin: linears as 8-bit integers with a scale per row."""

from qconvd.api import hookimpl


@hookimpl
def qconvd_formats():
    from qconvd_tiny.int8rows import Int8Rows

    return [Int8Rows()]
