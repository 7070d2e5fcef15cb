from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import make_encoder
from udfs.engine.batch import Packed, Padded
from udfs.engine.pooling import pool
from udfs.errors import ModelError
from udfs.model.attention import Layout
from udfs.model.embedding import Normalize, Pool, read_embedding
from udfs.model.files import open_model

REDUCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda h: h.mean(0),
    "cls": lambda h: h[0],
    "max": lambda h: h.amax(0),
    "lasttoken": lambda h: h[-1],
    "mean_sqrt_len_tokens": lambda h: h.sum(0) / len(h) ** 0.5,
    "weightedmean": lambda h: (h * torch.arange(1, len(h) + 1)[:, None]).sum(0) / torch.arange(1, len(h) + 1).sum(),
}


@pytest.mark.parametrize("modes", [(mode,) for mode in REDUCE] + [("max", "weightedmean"), ("mean", "cls")])
@pytest.mark.parametrize("padded", [True, False])
def test_pooling_equals_a_plain_loop(modes: tuple[str, ...], padded: bool) -> None:
    torch.manual_seed(0)
    lengths = [1, 3, 5] if padded else [5, 5, 5]
    hidden = torch.randn(3, 5, 4)
    real = torch.tensor([[i < n for i in range(5)] for n in lengths]) if padded else None
    expected = torch.stack(
        [torch.cat([REDUCE[mode](h[:n]) for mode in modes]) for h, n in zip(hidden, lengths, strict=True)]
    )
    ids = torch.zeros(3, 5, dtype=torch.long)
    places = torch.tensor([5 * i + j for i, n in enumerate(lengths) for j in range(n)])
    torch.testing.assert_close(pool(hidden, Padded(ids, real, None, places), how=Pool(modes)), expected)
    states = torch.cat([h[:n] for h, n in zip(hidden, lengths, strict=True)])[None]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    packed = Packed(ids, ids, None, Layout(ends, np.array(lengths)))
    torch.testing.assert_close(pool(states, packed, how=Pool(modes)), expected)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["max"]}, ("max",)),
        ({"pooling_mode": "weightedmean"}, ("weightedmean",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
    ],
)
def test_pooling_is_read_in_the_old_and_the_new_spelling(
    tmp_path: Path, config: dict[str, Any], modes: tuple[str, ...]
) -> None:
    embedding = read_embedding(open_model(make_encoder(tmp_path, pooling=config, normalize=False)))
    assert embedding.steps == (Pool(modes, width=32),)
    assert embedding.width == 32 * len(modes)
    assert not embedding.is_unit


def test_a_pooling_that_gristmill_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pools by median"):
        read_embedding(open_model(make_encoder(tmp_path, pooling={"pooling_mode": ["mean", "median"]})))


def test_a_model_that_ends_with_its_normalize_makes_units(tmp_path: Path) -> None:
    embedding = read_embedding(open_model(make_encoder(tmp_path)))
    assert embedding.steps[-1] == Normalize()
    assert embedding.is_unit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", REDUCE)
@pytest.mark.parametrize("skip", [0, 2])
def test_pooling_on_a_gpu_is_that_of_the_cpu(mode: str, skip: int) -> None:
    torch.manual_seed(0)
    lengths = np.array([1, 3, 5, 2])
    states, ids = torch.randn(1, 11, 8), torch.zeros(1, 11, dtype=torch.long)
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    how = Pool((mode,), include_prompt=not skip)
    there = Packed(ids.cuda(), ids.cuda(), None, Layout(ends.cuda(), lengths))
    here = Packed(ids, ids, None, Layout(ends, lengths))
    found, wanted = pool(states.cuda(), there, how=how, skip=skip), pool(states, here, how=how, skip=skip)
    torch.testing.assert_close(found.cpu(), wanted)
