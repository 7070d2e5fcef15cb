"""An engine in this process: whose answer is whose, in whatever order they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models import make_encoder
from udfs.local import LocalEngine
from udfs.model.files import open_model
from udfs.tasks.registry import make_spec, make_task


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_windows_may_be_collected_in_any_order(tmp_path: Path, order: list[int]) -> None:
    spec = make_spec(task="feature-extraction", model=make_encoder(tmp_path), precision="float32", max_batch_tokens=64)
    task = make_task(spec, open_model(spec.model))
    windows = [task.tokenize([text]).items for text in ("red kettle", "soil and tea", "a good book about tea")]
    with LocalEngine(spec) as engine:
        alone = [engine.forward(items).values for items in windows]
        tickets = [engine.submit(items) for items in windows]
        for number in order:
            np.testing.assert_allclose(engine.collect(tickets[number]).values, alone[number], atol=1e-5)
