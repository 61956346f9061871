"""Which linears of a model become GPTQ, and with how many bits in which groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qconvd.api import Kept, Linear, ModelInfo, decided_by, linears
from qconvd_gptq.options import GptqOptions, ModuleOptions


@dataclass(frozen=True, slots=True)
class Chosen(Linear):
    """A linear that is quantized."""

    bits: int = 4
    group_size: int = -1
    sym: bool = True

    @property
    def width(self) -> int:
        """Inputs that share a scale."""
        return self.columns if self.group_size < 0 else self.group_size

    @property
    def groups(self) -> int:
        return -(-self.columns // self.width)


def sorted_out(model: ModelInfo, options: GptqOptions) -> Iterator[Chosen | Kept]:
    """All linears of decoder layers. Raises `Unsupported` for a model that is quantized already."""
    for x in linears(model, "GPTQ"):
        yield _decided(x, options) if isinstance(x, Linear) else x


def _decided(x: Linear, options: GptqOptions) -> Chosen | Kept:
    bits, group, sym = options.bits[0], options.group_size[0], options.sym
    what = decided_by(options.modules, x.module)
    if isinstance(what, ModuleOptions):
        bits, group = what.bits or bits, what.group_size or group
        sym = sym if what.sym is None else what.sym
    elif what is not None:
        return Kept(x.tensor, x.module, "left out by `modules`")
    found = Chosen(x.tensor, x.module, x.layer, x.transposed, bits, group, sym)
    values = 32 if bits == 3 else 32 // bits
    if found.columns % values or found.rows % values:
        odd = f"{found.columns} inputs" if found.columns % values else f"{found.rows} outputs"
        return Kept(x.tensor, x.module, f"{odd} cannot be packed with {bits} bits, which takes a multiple of {values}")
    if found.columns % found.width and not options.partial_groups:
        return Kept(
            x.tensor, x.module, f"groups of {group} do not divide {found.columns} inputs; {_divides(found.columns, group)}"
        )
    return found


def _divides(columns: int, group: int) -> str:
    """What to say instead of a group size: the next smaller one that every reader knows, else whole rows."""
    smaller = next((size for size in (128, 64, 32) if size < group and columns % size == 0), -1)
    return f"`group_size: {smaller}` would"
