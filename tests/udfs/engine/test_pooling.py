from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import make_encoder, write_json
from udfs.engine.batch import Packed, Padded
from udfs.engine.pooling import pool
from udfs.errors import ModelError
from udfs.model.attention import Layout
from udfs.model.files import open_model
from udfs.model.pooling import Pooling, read_pooling


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("padded", [True, False])
def test_pooling_equals_a_plain_loop(mode: str, padded: bool) -> None:
    torch.manual_seed(0)
    lengths = [1, 3, 5] if padded else [5, 5, 5]
    hidden = torch.randn(3, 5, 4)
    real = torch.tensor([[i < n for i in range(5)] for n in lengths]) if padded else None
    reduce = {
        "mean": lambda h: h.mean(0),
        "cls": lambda h: h[0],
        "max": lambda h: h.amax(0),
        "lasttoken": lambda h: h[-1],
    }[mode]
    expected = torch.stack([reduce(h[:n]) for h, n in zip(hidden, lengths, strict=True)])
    ids = torch.zeros(3, 5, dtype=torch.long)
    batch = Padded(ids, real, None, torch.arange(15))
    torch.testing.assert_close(pool(hidden, batch, pooling=Pooling(mode)), expected)
    unit = pool(hidden, batch, pooling=Pooling(mode, normalize=True))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))
    states = torch.cat([h[:n] for h, n in zip(hidden, lengths, strict=True)])[None]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    packed = Packed(ids, ids, None, Layout(ends, np.array(lengths)))
    torch.testing.assert_close(pool(states, packed, pooling=Pooling(mode)), expected)


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["max"]}, "max"),
    ],
)
def test_pooling_is_read_in_the_old_and_the_new_spelling(tmp_path: Path, config: dict[str, Any], mode: str) -> None:
    files = open_model(make_encoder(tmp_path, pooling=config, normalize=False))
    assert read_pooling(files) == Pooling(mode, normalize=False)


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode": "weightedmean"},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": "mean", "include_prompt": False},
    ],
)
def test_a_pooling_that_gristmill_does_not_know_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        read_pooling(open_model(make_encoder(tmp_path, pooling=config)))


def test_a_module_that_gristmill_does_not_know_is_refused(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path))
    modules = json.loads((path / "modules.json").read_text())
    write_json(path / "modules.json", [*modules, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    with pytest.raises(ModelError, match="Dense"):
        read_pooling(open_model(str(path)))


def test_a_default_prompt_is_read(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path))
    write_json(
        path / "config_sentence_transformers.json", {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    )
    assert read_pooling(open_model(str(path))).prompt == "query: "
