"""Engines in processes of their own, that end with the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine_faults import plant
from tests.models import make_encoder
from tests.processes import running_engines
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products are faster so, the more the fuller the machine is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def spec(encoder: str) -> ScoreSpec:
    return make_spec(task="feature-extraction", model=encoder, precision="float32")


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's engines live; those that are left are killed after it."""
    # pytest's own directories are too deep for a socket's path.
    folder = Path(tempfile.mkdtemp(prefix="gm-"))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder / f"gristmill-{os.getuid()}"
    for process in running_engines(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def faults(top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Plant a fault in the engines that this test starts; returns the file with a line for each start."""

    def make(**options: Any) -> Path:
        starts = tmp_path / "starts"
        site = plant(tmp_path / "site", starts=str(starts), **options)
        # An engine's path is its worker's. First in it: Debian's Python has a sitecustomize of its own.
        monkeypatch.setattr(sys, "path", [site, *sys.path])
        return starts

    return make
