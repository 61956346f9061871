"""A port without a daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from web_kit import Port


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Port]]:
    """Opens ports with the `web:` that is given."""
    ports: list[Port] = []

    def opens(web: str = "{listen: '127.0.0.1:0'}") -> Port:
        root = tmp_path / f"port-{len(ports)}"
        root.mkdir()
        ports.append(Port(root, web))
        return ports[-1]

    yield opens
    for port in ports:
        port.close()


@pytest.fixture
def web(opened: Callable[..., Port]) -> Port:
    """A port on loopback, without a token."""
    return opened()
