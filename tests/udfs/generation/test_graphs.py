from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.decoders import NEW, put_to_write, write_all
from tests.random_writers import FAMILIES, make_prompts, make_writer, write_alone
from tests.recorded import Recorder, plain_kernel
from udfs.generation import graphs
from udfs.generation.graphs import Call
from udfs.generation.step import Pieces

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
_BOUNDED = {"Gemma2"}  # products bounded by a tanh, which the kernel does not know
_ON_THE_HOST = {"Phimoe"}  # makes its frequencies anew on the host in each call, which no graph records


@pytest.fixture
def kernel() -> Iterator[None]:
    with plain_kernel():
        yield


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.usefixtures("kernel")
def test_answers_by_the_kernel_and_recorded_steps_are_those_of_one_prompt_at_a_time(kind: str) -> None:
    model, prompts, record = make_writer(kind), make_prompts(8), Recorder()
    alone = [write_alone(model, prompt, max_new_tokens=NEW) for prompt in prompts]
    found = write_all(put_to_write(model, step_tokens=7, recorded=True, record=record), prompts)
    assert [sequence.ids for sequence in found] == alone
    assert bool(record.replayed) == (kind not in _BOUNDED)


@pytest.fixture(scope="module")
def llama() -> tuple[Any, list[np.ndarray], list[list[int]]]:
    model, prompts = make_writer("Llama"), make_prompts(8, seed=1)
    return model, prompts, [write_alone(model, prompt, max_new_tokens=NEW) for prompt in prompts]


@pytest.mark.usefixtures("kernel")
def test_steps_are_recorded_once_for_each_number_of_rows(llama: Any) -> None:
    model, prompts, alone = llama
    record = Recorder()
    decoder = put_to_write(model, at_once=6, step_tokens=300, recorded=True, record=record)
    found = write_all(decoder, prompts)
    assert [sequence.ids for sequence in found] == alone
    assert decoder._graphs is not None
    written = [shape.sequences for shape in decoder._graphs._recordings if not shape.reads]
    assert written == [8, 4]  # as answers end
    assert record.recorded == len(decoder._graphs._recordings)


@pytest.mark.usefixtures("kernel")
def test_steps_that_read_are_recorded_once_their_shape_is_there_again(llama: Any) -> None:
    model, prompts, alone = llama
    decoder, shapes = put_to_write(model, step_tokens=20, recorded=True, record=Recorder()), list[Any]()
    assert decoder._graphs is not None
    run, recordings = decoder._call, decoder._graphs._recordings

    def note(ids: np.ndarray, pieces: Pieces, last: np.ndarray) -> Any:
        shapes.extend([graphs._shape_of(pieces, len(last))] if len(last) else [])
        return run(ids, pieces, last)

    decoder._call = note  # type: ignore[method-assign]
    for _ in range(4):
        assert [sequence.ids for sequence in write_all(decoder, prompts)] == alone
        decoder._release(len(decoder._kept))
    assert decoder._graphs.reads
    read = {shape for shape in recordings if shape.reads}
    assert read
    assert {shape: shapes.count(shape) for shape in recordings} == {shape: 1 + shape.reads for shape in recordings}


@pytest.mark.usefixtures("kernel")
def test_steps_that_read_and_come_out_wrong_leave_the_others_recorded(
    llama: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, prompts, alone = llama
    decoder = put_to_write(model, step_tokens=20, recorded=True, record=Recorder())
    assert decoder._graphs is not None
    call, arena = decoder._graphs._call, decoder._arena

    def spoil(fixed: torch.Tensor, shape: graphs.Shape) -> torch.Tensor:
        found = call(fixed, shape)
        if shape.reads:  # what it puts into the cache is wrong too
            (_, _, places, _), _ = graphs._take_apart(fixed, shape)
            arena.keys[0][places] += 1
        return found * (1 - 2 * shape.reads)

    decoder._graphs._call = spoil  # type: ignore[method-assign]
    for _ in range(3):
        assert [sequence.ids for sequence in write_all(decoder, prompts)] == alone
    assert (decoder._graphs.works, decoder._graphs.reads) == (True, False)
    assert decoder._graphs._recordings
    assert "steps that read prompts are not recorded as CUDA graphs: logits are " in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["raises", "wrong", "frozen"])
@pytest.mark.usefixtures("kernel")
def test_steps_that_cannot_be_recorded_or_come_out_wrong_are_run_as_they_are(
    llama: Any, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(call: Call) -> Call:
        if fault == "raises":
            raise RuntimeError("operation not permitted when stream is capturing")
        if fault == "frozen":
            found = call()
            return lambda: found
        return lambda: call().roll(1, dims=-1)

    model, prompts, alone = llama
    found = write_all(put_to_write(model, recorded=True, record=record), prompts)
    assert [sequence.ids for sequence in found] == alone
    assert "steps are not recorded as CUDA graphs: " in capsys.readouterr().err


@pytest.mark.usefixtures("kernel")
def test_a_full_gpu_is_not_taken_for_a_model_that_cannot_be_recorded(llama: Any) -> None:
    full = [True]

    def record(call: Call) -> Call:
        if full[0]:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")
        return Recorder()(call)

    model, prompts, alone = llama
    decoder = put_to_write(model, recorded=True, record=record)
    assert [sequence.ids for sequence in write_all(decoder, prompts)] == alone
    assert decoder._graphs is not None
    assert decoder._graphs.works
    assert set(decoder._graphs._recordings.values()) == {None}
    full[0] = False
    decoder._graphs.forget()  # as the cache is made anew
    assert [sequence.ids for sequence in write_all(decoder, prompts)] == alone
    assert None not in decoder._graphs._recordings.values()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_tokens_in_half_precision_are_the_likeliest_within_rounding(kind: str, device: str) -> None:
    """On a GPU by its kernel and by graphs, on a CPU by what there is there."""
    model, prompts = make_writer(kind).to(device, torch.bfloat16), make_prompts(70)
    decoder = put_to_write(model, at_once=64, step_tokens=500, device=device, recorded=device == "cuda")
    found = write_all(decoder, prompts)
    if device == "cuda":
        assert decoder._working_graphs() is (None if kind in _BOUNDED | _ON_THE_HOST else decoder._graphs)
    exact = make_writer(kind)
    parts = [_shortfall(exact, prompt, sequence.ids) for prompt, sequence in zip(prompts, found, strict=True)]
    assert np.concatenate(parts).mean() < 0.01


def _shortfall(model: Any, prompt: np.ndarray, ids: list[int]) -> np.ndarray:
    """How far each token's logit is below the largest at its place, as a share of the range of logits."""
    row = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))
    with torch.inference_mode():
        logits = model(input_ids=row[None]).logits[0, len(prompt) - 1 : -1]
    taken = logits.gather(1, row[len(prompt) :, None])[:, 0]
    most, least = logits.max(-1).values, logits.min(-1).values
    return ((most - taken) / (most - least)).numpy()
