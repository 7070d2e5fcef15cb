from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def _in_one_thread(one_thread: None) -> None:
    """Fixtures of a module compute too."""
