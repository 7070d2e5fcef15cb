from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models import write_json
from tests.writers import make_decoder, make_encoder_decoder
from udfs.generation.own_settings import tell_ignored
from udfs.model.files import open_model
from udfs.tasks.registry import make_spec


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
