"""All that a plugin may import. Everything else in qconvd is private and may change without notice."""

from __future__ import annotations

from qconvd import __version__ as version
from qconvd.cache_home import cache_home
from qconvd.calibration.options import CalibrationOptions, calibration_spec
from qconvd.calibration.products import add_rounded_products, bfloat16_pays, prepare_rounded_products
from qconvd.checkpoints.base import CheckpointReader, FileInfo, ModelInfo, TensorInfo
from qconvd.checkpoints.ggml import ggml_vocabulary
from qconvd.checkpoints.ggml_shapes import check_ggml
from qconvd.checkpoints.gguf import gguf_metadata
from qconvd.containers.base import Container
from qconvd.containers.gguf import packed_metadata
from qconvd.containers.safetensors import safetensors_index
from qconvd.cuda_device import cuda_device
from qconvd.dtypes import BLOCKS, ELEMENT_BYTES, FLOATS, as_float32, bf16_as_normal_f16, row_bytes, storage
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
    Stateless,
    StatisticsFile,
    StatRequest,
    Unit,
    UnitReport,
    Whole,
)
from qconvd.errors import BadCheckpoint, ConfigError, Incomplete, QconvdError, Unsupported
from qconvd.examination import Finding
from qconvd.formats import (
    Advises,
    Detail,
    FileSize,
    Format,
    FormatOptions,
    HoldsItself,
    HoldsParts,
    Parts,
    RowsAlike,
    Size,
    check_report,
    type_list,
)
from qconvd.hookspecs import hookimpl
from qconvd.input_files import FileOrAuto, InputFile
from qconvd.kernel_cache import KernelCache, converts_halves, kernel_findings
from qconvd.plugins import container, gguf_families, given_by
from qconvd.quantized.files import carried_files, config_with, json_file
from qconvd.quantized.linears import JOINED, Kept, Linear, in_order, inside_layer, layer_of, linears, unevenly_joined
from qconvd.quantized.patterns import decided_by, module_patterns, unmatched_patterns
from qconvd.quantized.rest import LinearsAndRest, encode_rest, in_float32, kept_as, note_on_types, rest_unit
from qconvd.rebuilt import GgmlSource, Rebuilder, Rebuilt, rebuilt
from qconvd.statistics import Imatrix, open_statistics
from qconvd.statistics.hessian import Hessian
from qconvd.statistics.imatrix_write import imatrix_metadata, imatrix_tensors

__all__ = [
    "BLOCKS", "ELEMENT_BYTES", "FLOATS", "JOINED", "Advises", "Affine", "Array", "BadCheckpoint", "Buffer",
    "CalibrationOptions", "CalibrationSpec", "Cast", "CheckpointReader", "Concat", "ConfigError", "Constant", "Container",
    "ContainerSpec", "Dequantize", "Detail", "Device", "Encoded", "Encoder", "Expr", "FileInfo", "FileOrAuto", "FileSize",
    "FileSpec", "Finding", "Format", "FormatOptions", "GgmlSource", "Hessian", "HoldsItself", "HoldsParts", "Imatrix",
    "Incomplete", "InputFile", "Kept", "KernelCache", "LeftOut", "Linear", "LinearsAndRest", "ModelInfo", "NameParts", "Named",
    "Operation", "OutputTensor", "Parts", "Permute", "Placed", "Plan", "Prepares", "QconvdError", "Read", "Reader", "Rebuilder",
    "Rebuilt", "Repeat", "Reshape", "RowSplit", "RowsAlike", "SideFile", "Size", "Slice", "Stack", "StatRequest", "Stateless",
    "StatisticsFile", "TensorInfo", "Transpose", "Unit", "UnitReport", "Unsupported", "Whole", "add_rounded_products",
    "as_float32", "bf16_as_normal_f16", "bfloat16_pays",
    "cache_home", "calibration_spec",
    "carried_files", "check_ggml",
    "check_report", "config_with", "container", "converts_halves", "cuda_device", "decided_by", "dequantized", "encode_rest",
    "ggml_vocabulary",
    "gguf_families", "gguf_metadata", "given_by", "hookimpl", "imatrix_metadata", "imatrix_tensors",
    "in_float32", "in_order", "inside_layer", "json_file",
    "kept_as", "kernel_findings", "layer_of", "linears", "module_patterns", "note_on_types", "open_statistics",
    "packed_metadata", "prepare_rounded_products", "reads", "rebuilt",
    "rest_unit", "row_bytes", "rows_columns", "safetensors_index", "storage", "type_list", "unevenly_joined",
    "unmatched_patterns", "version",
]  # fmt: skip
