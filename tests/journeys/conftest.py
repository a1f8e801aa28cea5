"""Journeys train for real, on one thread: small tensors on busy machines wait for the second."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"
