"""The mean squares that a calibration has gathered: importance matrices of the layers, in files, until nobody needs them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from qconvd.engine.durable import make_folders
from qconvd.engine.gathering import Stream
from qconvd.engine.plan import StatisticsFile
from qconvd.errors import QconvdError
from qconvd.statistics import open_imatrix
from qconvd.statistics.imatrix_write import MeanSquares, write_imatrix

FOLDER = "mean-squares"
ENDING = ".imatrix.gguf"


class MeanSquareFiles:
    """A file for each layer, in a folder that only the same calibration under the same circumstances finds again."""

    def __init__(self, stream: Stream, about: Mapping[str, Any]) -> None:
        self._stream = stream
        self._folder = stream.folder / f"{FOLDER}-{sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]}"
        self._known: dict[Path, tuple[StatisticsFile, frozenset[str]]] = {}
        for path in sorted(self._folder.glob(f"*{ENDING}")):
            # One that is damaged is made again.
            with suppress(QconvdError):
                self._open(path)

    def has(self, linears: Collection[str]) -> bool:
        """Whether all of these are there."""
        return frozenset().union(*(names for _, names in self._known.values())).issuperset(linears)

    def write(self, layer: int, means: Mapping[str, Any], counts: Mapping[str, Sequence[int]]) -> None:
        """Keep a layer's, durably: float32 (columns,) or (experts * columns,). `counts`: tokens that each expert saw."""
        spec = self._stream.spec
        make_folders(self._folder)
        entries = {name: MeanSquares(array, counts[name]) for name, array in means.items()}
        # What others go on to read is never replaced.
        path = self._folder / f"{layer:04}-{sha256(repr(sorted(means)).encode()).hexdigest()[:8]}{ENDING}"
        write_imatrix(path, entries, dataset=spec.dataset, samples=spec.samples, length=spec.length)
        self._open(path)

    def files(self, linears: Collection[str]) -> tuple[StatisticsFile, ...]:
        """The files that hold any of these."""
        return tuple(file for _, (file, names) in sorted(self._known.items()) if not names.isdisjoint(linears))

    def unused(self, linears: Collection[str]) -> dict[str, int]:
        """How many experts saw no token, of those linears that have such."""
        found: dict[str, int] = {}
        for file, names in self._known.values():
            with closing(open_imatrix(Path(file.path))) as matrix:
                found |= {name: count for name in names.intersection(linears) if (count := matrix.unused(name))}
        return found

    def _open(self, path: Path) -> None:
        file = open_imatrix(path)
        self._known[path] = StatisticsFile(str(path), file.sha256), frozenset(file.entries)
        file.close()
