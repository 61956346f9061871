"""Jane Austen's novels, in the public domain, as Debian's package r-cran-janeaustenr has them.

The package holds an R database, `data/Rdata.rdb`: objects in a row, each a 32-bit length (big-endian) and a zlib stream of R's
serialization. Source: R Internals, "Serialization Formats"; a novel is a character vector, one element per line.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

STRINGS, STRING = 16, 9
"""R's STRSXP and CHARSXP, the low byte of an item's flags."""


def novels(package: Path) -> dict[str, str]:
    """Text by title (the first line, as it stands there) from the .deb or the Rdata.rdb in it."""
    data = _from_package(package) if package.suffix == ".deb" else package.read_bytes()
    texts = ["\n".join(lines) for lines in map(_lines, _objects(data)) if lines]
    return {text.split("\n", 1)[0].strip(): text for text in texts}


def _from_package(package: Path) -> bytes:
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        member = next(m for m in files if m.name.endswith("/janeaustenr/data/Rdata.rdb"))
        content = files.extractfile(member)
        assert content
        return content.read()


def _objects(data: bytes) -> Iterator[bytes]:
    while data:
        packed = zlib.decompressobj()
        yield packed.decompress(data[4:])
        data = packed.unused_data


def _lines(serialized: bytes) -> list[str]:
    """The elements of a character vector; none of any other object."""
    read = io.BytesIO(serialized)

    def number() -> int:
        return int.from_bytes(read.read(4), "big", signed=True)

    if read.read(2) != b"X\n":
        return []
    version = number()
    read.read(8)  # the versions of R that wrote it and that can read it
    if version == 3:
        read.read(number())  # the native encoding
    if number() & 0xFF != STRINGS:
        return []
    found = []
    for _ in range(number()):
        flags, length = number(), number()
        assert flags & 0xFF == STRING
        found.append(read.read(length).decode() if length >= 0 else "")
    return found
