"""Calibration: text is run through a model, layer by layer, to gather what its linears are multiplied with.

`options.py` and `sources.py` are the control side's and import nothing heavy; all else runs in a worker and needs torch and
transformers (`pip install 'qconvd[calibration]'`).
"""
