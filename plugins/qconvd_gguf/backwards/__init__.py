"""GGUF read backwards: the config.json, tensors and tokenizer files of a Hugging Face checkpoint that would become this GGUF.

`config.py` turns metadata into config.json, `tensors.py` undoes what a family does to tensors, `tokenizer.py` writes the
tokenizer's files, `rebuild.py` puts them together and proves the result by converting it forwards again, without weights.
"""
