"""qconvd plugin."""
