"""Which type each tensor of a quantized file gets, as llama-quantize decides it.

`roles.py` says what a tensor is for, `traits.py` what of the model counts, `rules.py` holds the rules of every preset as
tables, `choice.py` puts them together. Source: llama.cpp, src/llama-quant.cpp as of llama-cpp-python 0.3.36.
"""

from qconvd_gguf.mixes.choice import Choice, Tensor, Wish, check_imatrix, choose, convert, file_order
from qconvd_gguf.mixes.traits import Traits, traits_of

__all__ = ["Choice", "Tensor", "Traits", "Wish", "check_imatrix", "choose", "convert", "file_order", "traits_of"]
