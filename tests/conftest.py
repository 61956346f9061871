"""Fixtures that every test may use: real models, and records of llama.cpp's own output."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from daemon_kit import Home
    from hub_server import HubServer
    from worker_kit import Shop

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kernels for a GPU are run by numpy here. Triton asks when a kernel's module is imported, whichever test does that first.
os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_finish() -> None:
    """What was imported and collected stays: looking for garbage in it again and again takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder (bf16, 269 MB). Read only: copy or link it before you change it."""
    from models import cached, make_smollm2

    return cached("SmolLM2-135M-Instruct", make_smollm2)


@pytest.fixture(scope="session")
def glass() -> Path:
    """glassllm's English model as a Hugging Face folder (fp16, 1.7 MB, d_ff 341). Read only."""
    from models import cached, make_glass

    return cached("glass_en", make_glass)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers publishes it (BERT, fp32, 91 MB). Read only."""
    from models import cached, make_minilm

    return cached("all-MiniLM-L6-v2", make_minilm)


@pytest.fixture(scope="session")
def golden() -> Path:
    """llama.cpp's own bytes and file records."""
    return Path(__file__).parent / "golden"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A config, a watched folder and an output; what runs on them is killed in the end."""
    from daemon_kit import Home

    home = Home(tmp_path)
    yield home
    home.kill()


@pytest.fixture
def shop(tmp_path: Path, glass: Path) -> Iterator[Shop]:
    """A ledger and the model glass, to be made fp16, task by task."""
    from worker_kit import Shop

    shop = Shop(tmp_path, glass, "fp16")
    yield shop
    shop.ledger.close()


@pytest.fixture
def hub_server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of this test's own; huggingface_hub in this process may ask it, with no token but those that the test gives."""
    from huggingface_hub import constants

    from hub_server import HubServer

    for variable in ("HF_TOKEN", "HF_ENDPOINT", "CREDENTIALS_DIRECTORY", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # of which the server knows nothing
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server = HubServer(tmp_path_factory.mktemp("hub"))
    yield server
    server.stop()
