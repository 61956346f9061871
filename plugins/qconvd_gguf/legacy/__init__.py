"""GGML files from before GGUF, seen as GGUF: the same tensors under other names, the same vocabulary in another form.

`names.py` has the names in both directions, `vocabulary.py` the tokens, `config.py` what the old header does not say.
"""
