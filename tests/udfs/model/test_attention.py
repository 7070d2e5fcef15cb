"""Packed = padded = one at a time, for each architecture, task and pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import architectures
from tests.models import PACKS, WORDS, make_classifier, make_encoder, make_tagger
from udfs.engine.batch import BatchMaker
from udfs.engine.model import Model
from udfs.local import LocalEngine
from udfs.model.attention import _BY_REGISTRY, Layout, attend_by_runs, attend_packed, refuse_mask
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


_USUAL = {"gemma2", "gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3"}
_OTHERS = [
    pytest.param(kind, marks=[] if kind in _USUAL else pytest.mark.long)
    for kind in sorted(_BY_REGISTRY)
    if architectures.knows(kind)
]


@pytest.mark.parametrize("kind", _OTHERS)
def test_the_packed_states_of_a_decoder_are_those_of_transformers_alone(kind: str) -> None:
    model, items = architectures.make_model(kind), _drawn(architectures.VOCABULARY, [17, 1, 9, 9, 30])
    alone = [
        model(input_ids=torch.from_numpy(items.ids[start:stop][None].astype(np.int64)), use_cache=False)
        for start, stop in zip(items.offsets[:-1], items.offsets[1:], strict=True)
    ]
    seen = _spy(model)
    packed = model(**BatchMaker("cpu", packed=True)(items, np.arange(5)).inputs(), use_cache=False)
    wanted = torch.cat([one.last_hidden_state[0] for one in alone])
    torch.testing.assert_close(packed.last_hidden_state[0], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert seen["calls"] == architectures.LAYERS
    assert bool(seen["windows"]) == bool(seen["masks of windows"])  # a longer text would tell, were it otherwise


def _spy(model: Any) -> dict[str, Any]:
    """Have a model attend packed, and count how often and with which windows."""
    seen: dict[str, Any] = {"calls": 0, "windows": set(), "masks of windows": set()}

    def attend(*parts: Any, sliding_window: int | None = None, **options: Any) -> Any:
        seen["calls"] += 1
        seen["windows"] |= {sliding_window} - {None}
        return attend_packed(*parts, sliding_window=sliding_window, **options)

    def mask(*, local_size: int | None = None, **options: Any) -> None:
        seen["masks of windows"] |= {local_size} - {None}
        refuse_mask(**options)

    transformers.AttentionInterface.register("spied", attend)
    transformers.AttentionMaskInterface.register("spied", mask)
    model.set_attn_implementation("spied")
    return seen


def _drawn(vocabulary: int, lengths: list[int]) -> Items:
    ids = np.random.default_rng(0).integers(4, vocabulary, sum(lengths)).astype(np.int32)
    return Items(ids, np.concatenate([[0], np.cumsum(lengths)]))


# What these are used as: embedding models that read the last token, or both ways, and models of rewards.
_EMBEDS = {
    "Qwen3": {},
    "Mistral": {"sliding_window": 4},
    "Gemma3Text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma3Text both ways": {"sliding_window": 6, "use_bidirectional_attention": True}
    | {"layer_types": ["sliding_attention", "full_attention"]},
    "Llama both ways": {"is_causal": False},
    "Gemma2": {"sliding_window": 4, "attn_logit_softcapping": 2.0},
}


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("name", _EMBEDS)
def test_a_decoder_that_embeds_is_packed_and_equals_transformers(tmp_path: Path, name: str, pooling: str) -> None:
    path = make_encoder(
        tmp_path, kind=name.split()[0], pooling={"pooling_mode": pooling}, normalize=False, **_EMBEDS[name]
    )
    spec = _spec(path)
    items = _items(Model(spec))
    _check(spec, items=items)
    model = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    found, _ = Model(spec).run(items, np.arange(len(items)))
    for start, stop, vector in zip(items.offsets[:-1], items.offsets[1:], found, strict=True):
        ids = torch.from_numpy(items.ids[start:stop][None].astype(np.int64))
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        wanted = states[-1] if pooling == "lasttoken" else states.mean(dim=0)
        np.testing.assert_allclose(vector, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_decoder_sees_nothing_that_comes_after(tmp_path: Path) -> None:
    """The first token's state is the same, whatever follows; both ways it is another."""
    for options, same in (({}, True), ({"is_causal": False}, False)):
        folder = tmp_path / str(same)
        path = make_encoder(folder, kind="Llama", pooling={"pooling_mode": "cls"}, normalize=False, **options)
        model = Model(_spec(path))
        assert model.name.endswith("/packed")
        items = Items(np.array([9, 10, 11, 9, 12, 13, 14], dtype=np.int32), np.array([0, 3, 7]))
        one, other = model.run(items, np.arange(2))[0]
        assert np.allclose(one, other, atol=1e-5) == same


@pytest.mark.parametrize("kind", ["GPT2", "Gemma2", "Llama", "Mistral", "Qwen3"])
def test_a_packed_decoder_that_classifies_reads_each_items_own_last_token(tmp_path: Path, kind: str) -> None:
    path = make_classifier(tmp_path, ["bad", "good"], kind=kind, pad_token_id=None)
    _check(_spec(path, task="text-classification"), atol=1e-4)


def test_a_packed_decoder_that_tags_answers_by_token(tmp_path: Path) -> None:
    _check(_spec(make_tagger(tmp_path, ["O", "B-THING"], kind="Qwen2"), task="token-classification"), atol=1e-4)


def test_attention_with_sinks_or_a_bias_is_not_packed() -> None:
    q, k, v, layout = _random(np.array([2, 2]), heads=2, width=8)
    given = [part.transpose(0, 1)[None] for part in (q, k, v)]
    for strange in ({"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(1, 2, 4, 4)}):
        with pytest.raises(ValueError, match="neither sinks nor a bias"):
            attend_packed(torch.nn.Module(), *given, None, layout=layout, **strange)


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
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=on_gpu) for kind in [*PACKS, "Llama", "Mistral", "Qwen3"]])
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
@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_of_a_gpu_is_the_plain_reference(scale: float | None, window: int | None, causal: bool) -> None:
    q, k, v, layout = _random(np.array([33, 8, 8, 1]), heads=2, width=32)
    half = [part.to("cuda", torch.bfloat16) for part in (q, k, v)]
    there = Layout(layout.cu_seqlens.to("cuda"), layout.lengths)
    given = [part.transpose(0, 1)[None] for part in half]
    options = {"scaling": scale, "sliding_window": window, "is_causal": causal}
    got, _ = attend_packed(torch.nn.Module(), *given, None, layout=there, **options)
    expected = _plain(*(part.cpu().float() for part in half), layout, scale or 32**-0.5, window, causal=causal)
    torch.testing.assert_close(got[0].cpu().float(), expected, atol=2e-2, rtol=2e-2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 80), min_size=1, max_size=6),
    st.sampled_from([None, 1, 4, 100]),
    st.booleans(),
    st.sampled_from([None, 1.5]),
    st.sampled_from([1, 2]),
)
def test_attention_by_runs_is_the_plain_reference(
    lengths: list[int], window: int | None, causal: bool, softcap: float | None, shared: int
) -> None:
    q, k, v, layout = _random(np.array(lengths), heads=2, width=8)
    k, v = k[:, ::shared], v[:, ::shared]
    got = attend_by_runs(q, k, v, layout, scale=0.3, sliding_window=window, causal=causal, softcap=softcap)
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    wanted = _plain(q, k, v, layout, 0.3, window, causal=causal, softcap=softcap)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def _random(lengths: np.ndarray, *, heads: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Layout]:
    torch.manual_seed(int(lengths.sum()))
    q, k, v = (torch.randn(int(lengths.sum()), heads, width) for _ in range(3))
    return q, k, v, Layout(torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32), lengths)


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
    *,
    causal: bool = False,
    softcap: float | None = None,
) -> torch.Tensor:
    """What variable-length attention is: a softmax over each sequence by itself, one after the other."""
    done = []
    for start, length in zip(layout.starts.tolist(), layout.lengths.tolist(), strict=True):
        one_q, one_k, one_v = (part[start : start + length].transpose(0, 1) for part in (q, k, v))
        products = scale * one_q @ one_k.transpose(1, 2)
        if softcap is not None:
            products = softcap * torch.tanh(products / softcap)
        place = torch.arange(length)
        distance = place[:, None] - place
        if window is not None:
            products = products.masked_fill(distance.abs() >= window, float("-inf"))
        if causal:
            products = products.masked_fill(distance < 0, float("-inf"))
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
