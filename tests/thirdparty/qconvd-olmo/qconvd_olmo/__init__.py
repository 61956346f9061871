"""A qconvd plugin: OLMo for the format `gguf`."""

from qconvd.api import hookimpl


@hookimpl
def qconvd_gguf_families():
    from qconvd_olmo.olmo import FAMILY

    return [FAMILY]
