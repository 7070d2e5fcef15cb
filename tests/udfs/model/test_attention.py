"""Packed = padded = one at a time, for each architecture, task and pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import PACKS, WORDS, make_classifier, make_encoder
from udfs.engine.model import Model
from udfs.local import LocalEngine
from udfs.model.attention import Layout, attend_by_runs, attend_packed, refuse_mask
from udfs.model.files import open_model
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec, make_task
from udfs.wire.items import Items

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def _spec(model: str, **options: Any) -> ScoreSpec:
    return make_spec(**{"task": "feature-extraction", "model": model, "precision": "float32", **options})


def _items(model: Model) -> Items:
    """Items of one token, of the maximum length, and between, some of one length."""
    lengths = [model.max_tokens, 20, 20, 7, 7, 7, 3, 1, 1]
    ids = np.random.default_rng(3).integers(4, 60, sum(lengths)).astype(np.int32)
    return Items(ids, np.concatenate([[0], np.cumsum(lengths)]))


def _check(spec: ScoreSpec, *, items: Items | None = None, atol: float = 2e-5) -> None:
    packed, padded = Model(spec), Model(spec, packed=False)
    assert (packed.name[-6:], padded.name[-6:]) == ("packed", "padded")
    items = items or _items(packed)
    every = np.arange(len(items))
    together, widths = packed.run(items, every)
    assert widths.tolist() == items.lengths.tolist()
    np.testing.assert_allclose(together, padded.run(items, every)[0], rtol=1e-4, atol=atol)
    alone = np.concatenate([packed.run(items, every[i : i + 1])[0] for i in every])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=atol)
    assert np.ptp(together, axis=0).max() > 100 * atol  # items differ at all


@pytest.mark.parametrize("kind", PACKS)
def test_a_packed_item_has_the_output_that_it_has_padded_and_alone(tmp_path: Path, kind: str) -> None:
    _check(_spec(make_encoder(tmp_path, kind=kind)))


@pytest.mark.parametrize("kind", PACKS)
def test_a_packed_classifier_reads_each_items_own_first_token(tmp_path: Path, kind: str) -> None:
    _check(_spec(make_classifier(tmp_path, ["bad", "good"], kind=kind), task="text-classification"), atol=1e-4)


def test_a_modern_bert_that_reads_the_mean_reads_each_items_own(tmp_path: Path) -> None:
    path = make_classifier(tmp_path, ["bad", "good"], kind="ModernBert", classifier_pooling="mean")
    _check(_spec(path, task="text-classification"), atol=1e-4)


@pytest.mark.parametrize("mode", ["cls", "max", "lasttoken"])
def test_packed_items_are_pooled_as_padded_ones(tmp_path: Path, mode: str) -> None:
    _check(_spec(make_encoder(tmp_path, pooling={"pooling_mode": mode})))


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_packed_pairs_keep_their_segments(tmp_path: Path, kind: str) -> None:
    path = make_classifier(tmp_path, ["contradiction", "entailment"], kind=kind)
    spec = _spec(path, task="zero-shot-classification", labels=("red", "a good book"))
    items = make_task(spec, open_model(path)).tokenize([" ".join(WORDS[:n]) for n in (9, 4, 1)]).items
    assert (items.type_ids is not None) == (kind == "Bert")
    _check(spec, items=items, atol=1e-4)


@pytest.mark.parametrize("kind", PACKS)
def test_packed_bfloat16_is_padded_float32_within_rounding(tmp_path: Path, kind: str) -> None:
    path = make_encoder(tmp_path, kind=kind)
    packed, exact = Model(_spec(path, precision="bfloat16")), Model(_spec(path), packed=False)
    items = _items(exact)
    every = np.arange(len(items))
    assert (packed.run(items, every)[0] * exact.run(items, every)[0]).sum(axis=1).min() > 0.98


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=on_gpu) for kind in PACKS])
def test_on_a_gpu_a_packed_item_is_itself_within_rounding(tmp_path: Path, kind: str, precision: str) -> None:
    spec = _spec(make_encoder(tmp_path, kind=kind), precision=precision)
    packed, padded = Model(spec), Model(spec, packed=False)
    assert "cuda" in packed.name
    assert packed.name.endswith("packed")
    items = _items(packed)
    every = np.arange(len(items))
    together = packed.run(items, every)[0]
    assert (together * padded.run(items, every)[0]).sum(axis=1).min() > 0.98
    alone = np.concatenate([packed.run(items, every[i : i + 1])[0] for i in every])
    assert (together * alone).sum(axis=1).min() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("scale", "window"), [(None, None), (0.3, None), (None, 4)])
def test_the_kernel_of_a_gpu_is_the_plain_reference(scale: float | None, window: int | None) -> None:
    q, k, v, layout = _random(np.array([33, 8, 8, 1]), heads=2, width=32)
    half = [part.to("cuda", torch.bfloat16) for part in (q, k, v)]
    there = Layout(layout.cu_seqlens.to("cuda"), layout.lengths)
    given = [part.transpose(0, 1)[None] for part in half]
    got, _ = attend_packed(torch.nn.Module(), *given, None, scaling=scale, sliding_window=window, layout=there)
    expected = _plain(*(part.cpu().float() for part in half), layout, scale or 32**-0.5, window)
    torch.testing.assert_close(got[0].cpu().float(), expected, atol=2e-2, rtol=2e-2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=1, max_size=6), st.sampled_from([None, 1, 4, 100]))
def test_attention_by_runs_is_the_plain_reference(lengths: list[int], window: int | None) -> None:
    q, k, v, layout = _random(np.array(lengths), heads=2, width=8)
    got = attend_by_runs(q, k, v, layout, scale=0.3, sliding_window=window)
    torch.testing.assert_close(got, _plain(q, k, v, layout, 0.3, window), atol=1e-5, rtol=1e-4)


def _random(lengths: np.ndarray, *, heads: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Layout]:
    torch.manual_seed(int(lengths.sum()))
    q, k, v = (torch.randn(int(lengths.sum()), heads, width) for _ in range(3))
    return q, k, v, Layout(torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32), lengths)


def _plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scale: float, window: int | None
) -> torch.Tensor:
    """What variable-length attention is: a softmax over each sequence by itself, one after the other."""
    done = []
    for start, length in zip(layout.starts.tolist(), layout.lengths.tolist(), strict=True):
        one_q, one_k, one_v = (part[start : start + length].transpose(0, 1) for part in (q, k, v))
        products = scale * one_q @ one_k.transpose(1, 2)
        if window is not None:
            place = torch.arange(length)
            products = products.masked_fill((place[:, None] - place).abs() >= window, float("-inf"))
        done.append((products.softmax(-1) @ one_v).transpose(0, 1))
    return torch.cat(done)


def test_packed_attention_raises_when_it_is_handed_a_padded_batch() -> None:
    q, k, v, layout = _random(np.array([2, 2]), heads=2, width=8)
    one = [part.transpose(0, 1)[None] for part in (q, k, v)]
    two = [part.expand(2, -1, -1, -1) for part in one]
    module = torch.nn.Module()
    with pytest.raises(ValueError, match="padded micro-batch"):
        attend_packed(module, *two, None, layout=layout)
    with pytest.raises(ValueError, match="padded micro-batch"):
        attend_packed(module, *one, torch.ones(1, 1, 4, 4), layout=layout)
    with pytest.raises(ValueError, match="no layout"):
        attend_packed(module, *one, None)
    with pytest.raises(ValueError, match="padded micro-batch"):
        refuse_mask(batch_size=1, attention_mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match="padded micro-batch"):
        refuse_mask(batch_size=2)


def test_a_packed_model_refuses_a_padded_batch(tmp_path: Path) -> None:
    spec = _spec(make_encoder(tmp_path))
    packed, padded = Model(spec), Model(spec, packed=False)
    packed._make_batch = padded._make_batch
    with pytest.raises(ValueError, match="padded micro-batch"):
        packed.run(_items(padded), np.arange(9))


def test_a_version_whose_packing_is_wrong_is_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from udfs.model import attention

    whole = lambda q, k, v, layout, **_: attend_by_runs(  # noqa: E731
        q, k, v, Layout(layout.cu_seqlens[[0, -1]], np.array([len(q)])), scale=0.3
    )
    monkeypatch.setattr(attention, "attend_by_runs", whole)
    assert Model(_spec(make_encoder(tmp_path))).name.endswith("/padded")


def test_a_machine_whose_kernel_does_not_run_pads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from udfs.model import attention

    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr(attention, "attend_by_runs", refuse)
    assert Model(_spec(make_encoder(tmp_path))).name.endswith("/padded")
    assert "is padded, since packed it does not run: FlashAttention only" in capsys.readouterr().err


def test_the_budget_of_packed_items_counts_no_padding(tmp_path: Path) -> None:
    spec = _spec(make_encoder(tmp_path), max_batch_tokens=64)
    seen: list[int] = []
    with LocalEngine(spec) as engine:
        forward = engine.model._forward  # type: ignore[attr-defined]
        engine.model._forward = lambda batch: (seen.append(batch.ids.shape[1]), forward(batch))[1]  # type: ignore
        items = _items(engine.model)  # type: ignore[arg-type]
        padded = engine.forward(items).padded_tokens
    assert padded.tolist() == items.lengths.tolist()
    assert sum(seen) == len(items.ids)
    assert max(seen) <= 64
