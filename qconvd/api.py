"""All that a plugin may import. Everything else in qconvd is private and may change without notice."""

from __future__ import annotations

from qconvd import __version__ as version
from qconvd.cache_home import cache_home
from qconvd.calibration.options import CalibrationOptions, calibration_spec
from qconvd.checkpoints.base import CheckpointReader, FileInfo, ModelInfo, TensorInfo
from qconvd.checkpoints.ggml import ggml_vocabulary
from qconvd.checkpoints.gguf import gguf_metadata
from qconvd.containers.base import Container
from qconvd.containers.safetensors import safetensors_index
from qconvd.cuda_device import cuda_device
from qconvd.dtypes import BLOCKS, ELEMENT_BYTES, FLOATS, as_float32, row_bytes, storage
from qconvd.engine.expr import (
    Affine,
    Cast,
    Concat,
    Constant,
    Dequantize,
    Expr,
    Named,
    Permute,
    Read,
    Repeat,
    Reshape,
    Slice,
    Stack,
    Transpose,
    dequantized,
    reads,
    rows_columns,
)
from qconvd.engine.operations import Operation
from qconvd.engine.plan import (
    Array,
    Buffer,
    CalibrationSpec,
    ContainerSpec,
    Device,
    Encoded,
    Encoder,
    FileSpec,
    LeftOut,
    NameParts,
    OutputTensor,
    Placed,
    Plan,
    Prepares,
    Reader,
    RowSplit,
    SideFile,
    StatisticsFile,
    StatRequest,
    Unit,
    UnitReport,
    Whole,
)
from qconvd.errors import BadCheckpoint, ConfigError, Incomplete, QconvdError, Unsupported
from qconvd.examination import Finding
from qconvd.formats import Advises, Detail, Format, FormatOptions, Size, check_report
from qconvd.hookspecs import hookimpl
from qconvd.input_files import FileOrAuto, InputFile
from qconvd.kernel_cache import KernelCache, kernel_findings
from qconvd.plugins import container, gguf_families, given_by
from qconvd.rebuilt import GgmlSource, Rebuilder, Rebuilt, rebuilt
from qconvd.statistics import Imatrix, open_statistics
from qconvd.statistics.hessian import Hessian

__all__ = [
    "BLOCKS", "ELEMENT_BYTES", "FLOATS", "Advises", "Affine", "Array", "BadCheckpoint", "Buffer", "CalibrationOptions",
    "CalibrationSpec", "Cast", "CheckpointReader", "Concat", "ConfigError", "Constant", "Container", "ContainerSpec",
    "Dequantize", "Detail", "Device", "Encoded", "Encoder", "Expr", "FileInfo", "FileOrAuto", "FileSpec", "Finding", "Format",
    "FormatOptions", "GgmlSource", "Hessian", "Imatrix", "Incomplete", "InputFile", "KernelCache", "LeftOut", "ModelInfo",
    "NameParts", "Named", "Operation", "OutputTensor", "Permute", "Placed", "Plan", "Prepares", "QconvdError", "Read", "Reader",
    "Rebuilder", "Rebuilt", "Repeat", "Reshape", "RowSplit", "SideFile", "Size", "Slice", "Stack", "StatRequest",
    "StatisticsFile", "TensorInfo", "Transpose", "Unit", "UnitReport", "Unsupported", "Whole", "as_float32", "cache_home",
    "calibration_spec", "check_report", "container", "cuda_device", "dequantized", "ggml_vocabulary", "gguf_families",
    "gguf_metadata", "given_by", "hookimpl", "kernel_findings", "open_statistics", "reads", "rebuilt", "row_bytes",
    "rows_columns", "safetensors_index", "storage", "version",
]  # fmt: skip
