from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import make_classifier, make_encoder
from udfs.errors import ModelError
from udfs.model.files import open_model
from udfs.model.limits import resolve_max_tokens


def test_the_maximum_is_the_models_own_and_never_above_its_positions(tmp_path: Path) -> None:
    assert resolve_max_tokens(open_model(make_encoder(tmp_path / "a", max_seq_length=48)), None) == 48
    assert resolve_max_tokens(open_model(make_encoder(tmp_path / "b", max_seq_length=None)), None) == 64
    assert resolve_max_tokens(open_model(make_encoder(tmp_path / "c", max_seq_length=999)), None) == 66
    roberta = open_model(make_classifier(tmp_path / "d", ["x", "y"], kind="Roberta"))
    assert resolve_max_tokens(roberta, None) == 64
    assert resolve_max_tokens(roberta, 65) == 65
    with pytest.raises(ModelError, match="reads at most 65 tokens"):
        resolve_max_tokens(roberta, 66)


def test_an_older_models_maximum_is_read_from_the_file_of_its_kind(tmp_path: Path) -> None:
    path = Path(make_encoder(tmp_path, kind="Roberta", max_seq_length=None))
    (path / "sentence_roberta_config.json").write_text('{"max_seq_length": 12}')
    assert resolve_max_tokens(open_model(str(path)), None) == 12
