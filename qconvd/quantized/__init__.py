"""What formats have in common that quantize the linears of a model's layers and leave the rest in 16 bits.

linears    which tensors are such linears, what each layer's are called, what runtimes join
patterns   a recipe's patterns for names of linears
rest       everything that is not quantized: its type, its bytes and back
files      config.json with what readers must know, and the files that go along
"""
