"""The format `int8rows`: each row of a linear as integers from -127 to 127 and one float32 scale."""

from typing import Literal

from pydantic import Field

from qconvd.api import (
    ContainerSpec,
    Encoded,
    FormatOptions,
    LeftOut,
    NameParts,
    OutputTensor,
    Plan,
    Read,
    Reader,
    SideFile,
    Size,
    Unit,
    UnitReport,
    Unsupported,
    check_report,
    container,
    row_bytes,
    safetensors_index,
)


class Int8RowsOptions(FormatOptions):
    round: Literal["nearest", "down"] = Field("nearest", description="How a weight becomes an integer.")
    max_shard_size: Size = Field(5_000_000_000, gt=0, description="Files are split above this size, e.g. `5GB`.")


class Int8Rows:
    name = "int8rows"
    version = "1"
    summary = "safetensors with 8-bit linears and a scale per row"
    Options = Int8RowsOptions
    aliases = {"i8r": {"round": "nearest"}}
    devices = ("cpu",)

    def from_text(self, text):
        raise ValueError(f"int8rows has no short form {text!r}; write int8rows: {{round: {text}}}")

    def expand(self, options):
        return [options]

    def name_parts(self, options):
        return NameParts("int8rows", "int8rows")

    def plan(self, model, options):
        units, left_out = [], []
        for tensor in model.tensors.values():
            if tensor.dtype not in ("F32", "F16", "BF16"):
                raise Unsupported(f"int8rows cannot read {tensor.dtype}", where=tensor.name)
            if len(tensor.shape) == 2 and "embed" not in tensor.name:
                units.append(self._linear(tensor, options))
            else:
                units.append(self._copy(tensor))
                left_out.append(LeftOut(tensor.name, tensor.dtype, "no linear"))
        spec = ContainerSpec("safetensors", options={"max_shard_size": options.max_shard_size})
        outputs = [output for unit in units for output in unit.outputs]
        files = container("safetensors").layout(spec, outputs)
        index = safetensors_index(files, outputs)
        side = [SideFile(f.path, f.size, source=f.path) for f in model.files if f.role == "side" and "index" not in f.path]
        return Plan(
            container=spec,
            files=files,
            units=tuple(units),
            name=self.name_parts(options),
            side_files=(*side, index) if index else tuple(side),
            left_out=tuple(left_out),
            loads_with=(Reader("safetensors", "the tensors; no runtime computes with them yet"),),
        )

    def _linear(self, tensor, options):
        rows, columns = tensor.shape
        return Unit(
            id=tensor.name,
            layer=None,
            inputs=(Read.of(tensor),),
            outputs=(
                OutputTensor(tensor.name, "I8", (rows, columns), rows * columns),
                OutputTensor(f"{tensor.name}_scale", "F32", (rows, 1), rows * 4),
            ),
            memory={"cpu": 16 << 20},
            options={"round": options.round, "non_finite": options.non_finite},
        )

    def _copy(self, tensor):
        nbytes = tensor.rows * row_bytes(tensor.dtype, tensor.columns)
        return Unit(tensor.name, None, (Read.of(tensor),), (OutputTensor(tensor.name, tensor.dtype, tensor.shape, nbytes),))

    def encoder(self, plan, device):
        return Int8RowsEncoder()

    def decode(self, unit, rows, data):
        import numpy as np

        if len(unit.outputs) == 1:
            return [_numbers(np.frombuffer(data[0], _STORED[unit.outputs[0].dtype]), unit.outputs[0].dtype, rows)]
        whole = np.frombuffer(data[0], np.int8).reshape(rows[1] - rows[0], -1).astype(np.float32)
        return [whole * np.frombuffer(data[1], np.float32)[:, None]]

    def bound(self, unit, rows, x, stats):
        import numpy as np

        if len(unit.outputs) == 1:
            return [np.zeros_like(x[0])]
        step = np.abs(x[0]).max(axis=1, keepdims=True) / 127
        return [np.broadcast_to(step * (0.5001 if unit.options["round"] == "nearest" else 1.0001), x[0].shape)]


class Int8RowsEncoder:
    def encode(self, unit, rows, x, stats):
        import numpy as np

        source = unit.inputs[0].dtype
        if len(unit.outputs) == 1:
            return Encoded([x[0]], UnitReport(weights=x[0].size))
        values = _numbers(x[0], source, rows)
        odd = UnitReport(nan=int(np.isnan(values).sum()), inf=int(np.isinf(values).sum()))
        check_report(unit, odd, unit.options)
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        divided = values / np.where(scale == 0, np.float32(1), scale)
        whole = (np.rint if unit.options["round"] == "nearest" else np.floor)(divided).clip(-127, 127).astype(np.int8)
        error = whole * scale - values
        figures = (values.size, float((error**2).sum()), float((values**2).sum()), float(np.abs(error).max()))
        return Encoded([whole, scale], UnitReport(*figures) + odd)


# BF16 travels as the bit patterns of uint16: it is the upper half of a float32.
_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def _numbers(x, dtype, rows):
    import numpy as np

    values = (x.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else x.astype(np.float32)
    return values.reshape(rows[1] - rows[0], -1)
