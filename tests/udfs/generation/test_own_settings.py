from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.decoders import write_all
from tests.models import write_json
from tests.random_writers import make_prompts, save_writer
from tests.writers import make_decoder, make_encoder_decoder
from udfs.errors import ModelError
from udfs.generation.encoder_decoder import EncoderDecoder
from udfs.generation.loading import load_writer
from udfs.generation.own_settings import read_obeyed, tell_ignored
from udfs.model.files import open_model
from udfs.model.precision import DevicePlan
from udfs.tasks.registry import make_spec
from udfs.wire.items import Items


def _told(model: str, **options: Any) -> str | None:
    return tell_ignored(open_model(model), make_spec(task="text-generation", model=model, **options))


def _decoder(path: Path, **own: Any) -> str:
    model = make_decoder(path)
    write_json(path / "generation_config.json", own)
    return model


def test_what_a_decoder_comes_with_and_is_ignored_is_named(tmp_path: Path) -> None:
    model = _decoder(tmp_path, no_repeat_ngram_size=3, bad_words_ids=[[n] for n in range(99)], repetition_penalty=1.1)
    assert (told := _told(model)) is not None
    assert told.startswith(f"model {model!r} comes with no_repeat_ngram_size=3, bad_words_ids=[[0], [1], ")
    assert told.endswith("…, which gristmill ignores in a decoder")
    assert "repetition_penalty" not in told


def test_stop_strings_of_the_model_s_own_have_a_setting(tmp_path: Path) -> None:
    assert str(_told(_decoder(tmp_path, stop_strings=["END"]))).endswith("; give stop strings as score.stop")


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2], "max_length": 20},
        {"no_repeat_ngram_size": 0, "guidance_scale": 1.0, "bad_words_ids": None, "suppress_tokens": []},
    ],
)
def test_what_the_job_says_itself_or_changes_nothing_is_not_told(own: dict[str, Any], tmp_path: Path) -> None:
    assert _told(_decoder(tmp_path, **own)) is None


def test_what_cuts_off_tokens_counts_where_tokens_are_drawn(tmp_path: Path) -> None:
    model = _decoder(tmp_path, min_p=0.1)
    assert _told(model) is None
    assert "min_p=0.1" in str(_told(model, temperature=0.7))


def test_settings_of_an_old_model_s_config_count_and_an_encoder_decoder_obeys_its_own(tmp_path: Path) -> None:
    assert "min_length=5" in str(_told(make_decoder(tmp_path / "old", min_length=5)))
    assert _told(make_encoder_decoder(tmp_path / "t5", no_repeat_ngram_size=3)) is None


def test_what_an_encoder_decoder_does_not_obey_is_named(tmp_path: Path) -> None:
    model = make_encoder_decoder(tmp_path, no_repeat_ngram_size=3, max_time=2.0, encoder_repetition_penalty=1.5)
    told = "comes with encoder_repetition_penalty=1.5, max_time=2.0, which gristmill ignores in an encoder-decoder"
    assert told in str(_told(model))
    assert "encoder_repetition_penalty" not in str(_told(model, num_beams=2))


# Of all kinds: more or other things returned, other searches, caches, clocks, helpers, and what is no value at all.
_HARMFUL: list[dict[str, Any]] = [
    {"num_return_sequences": 3},
    {"num_return_sequences": 0},
    {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True},
    {"num_beam_groups": 2, "diversity_penalty": 0.5},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "low"},
    {"constraints": [1], "force_words_ids": [[7]]},
    {"do_sample": True, "temperature": 0.5, "num_beams": 5, "top_h": 0.3},
    {"use_cache": False},
    {"cache_implementation": "static", "max_cache_len": 5},
    {"cache_implementation": "quantized", "cache_config": {"backend": "quanto"}},
    {"return_legacy_cache": True, "low_memory": True, "prefill_chunk_size": 4},
    {"max_time": 1e-6},
    {"max_length": 3, "max_new_tokens": 2},
    {"stop_strings": ["a"], "token_healing": True},
    {"is_assistant": True, "num_assistant_tokens": 5, "assistant_early_exit": 1, "prompt_lookup_num_tokens": 3},
    {"guidance_scale": 3.0, "watermarking_config": {"greenlist_ratio": 0.5, "bias": 9.0}},
    {"custom_generate": "a/b", "trust_remote_code": True},
    {"bad_words_ids": [], "suppress_tokens": []},
    {"something_new": {"of": "another version"}},
]
_INVALID: list[dict[str, Any]] = [{"cache_implementation": "unheard-of"}, {"compile_config": {}}]
_CASES = [
    *(("generation_config.json", own) for own in (*_HARMFUL, *_INVALID)),
    *(pytest.param("config.json", own, marks=pytest.mark.long) for own in _HARMFUL),
]


@pytest.fixture(scope="module", params=["Llama", "Bart"])
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp(request.param)
    save_writer(path, request.param)
    return path, {beams: _write(path, beams) for beams in ((1, 3) if request.param == "Bart" else (1,))}


def _write(path: Path, num_beams: int) -> list[list[int]]:
    spec = make_spec(task="text-generation", model=str(path), max_new_tokens=8, num_beams=num_beams)
    found = load_writer(spec, DevicePlan("cpu", "float32", "test"), name="tiny", lanes=1)
    prompts = make_prompts(4, shared=0)
    if not isinstance(found, EncoderDecoder):
        return [sequence.ids for sequence in write_all(found[0], prompts)]  # type: ignore[arg-type]
    items = Items(np.concatenate(prompts), np.concatenate([[0], np.cumsum([len(p) for p in prompts])]))
    return [answer.ids.tolist() for answer in found.run(items, np.arange(4))[0]]


@pytest.mark.parametrize(("file", "own"), _CASES, ids=lambda part: part if isinstance(part, str) else next(iter(part)))
def test_settings_of_a_model_s_own_break_no_way_of_writing(writer: Any, file: str, own: dict[str, Any]) -> None:
    path, wanted = writer
    before = {name: (path / name).read_text() for name in ("generation_config.json", "config.json")}
    try:
        write_json(path / file, json.loads(before[file]) | own)
        if file == "config.json":
            (path / "generation_config.json").unlink()
        assert {beams: _write(path, beams) for beams in wanted} == wanted
    finally:
        for name, content in before.items():
            (path / name).write_text(content)


def test_a_start_token_may_stand_in_a_list(tmp_path: Path) -> None:
    save_writer(tmp_path, "Bart")
    wanted, own = _write(tmp_path, 1), json.loads((tmp_path / "generation_config.json").read_text())
    write_json(tmp_path / "generation_config.json", own | {"decoder_start_token_id": [own["decoder_start_token_id"]]})
    assert _write(tmp_path, 1) == wanted


def test_settings_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    save_writer(tmp_path, "Bart")
    write_json(tmp_path / "generation_config.json", {"suppress_tokens": [7], "forced_eos_token_id": 7})
    with pytest.raises(ModelError, match="forced_eos_token_id"):
        _write(tmp_path, 1)


@pytest.mark.parametrize("own", [{"length_penalty": "long"}, {"repetition_penalty": 0}, {"eos_token_id": "</s>"}])
def test_a_setting_that_would_break_each_answer_is_told_as_the_model_is_looked_at(
    own: dict[str, Any], tmp_path: Path
) -> None:
    files = open_model(make_encoder_decoder(tmp_path, **own))
    with pytest.raises(ModelError, match=f"has the generation setting {next(iter(own))}"):
        read_obeyed(files, num_beams=3)
