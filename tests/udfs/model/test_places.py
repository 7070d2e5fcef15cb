"""What a model is called, in all the ways that name one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import make_encoder
from udfs.errors import ModelError
from udfs.model.files import open_model
from udfs.model.places import resolve_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "revision", "found"),
    [
        ("hf://acme/embedder", None, ("acme/embedder", None)),
        ("hf://models/acme/embedder", None, ("acme/embedder", None)),
        ("hf://acme/embedder@v1.0", None, ("acme/embedder", "v1.0")),
        ("hf://acme/embedder@v1.0/", "v1.0", ("acme/embedder", "v1.0")),
        ("hf://acme/embedder@refs/pr/3", None, ("acme/embedder", "refs/pr/3")),
        ("hf://acme/embedder@a%2Fb", None, ("acme/embedder", "a/b")),
        ("hf://acme/embedder", COMMIT, ("acme/embedder", COMMIT)),
        ("dbfs:/Volumes/main/shop/models/e5", None, ("/Volumes/main/shop/models/e5", None)),
        ("dbfs:///Volumes/main/shop/a%20b/", None, ("/Volumes/main/shop/a b", None)),
        ("dbfs:/models/e5", None, ("/dbfs/models/e5", None)),
        ("dbfs:/dbfs/models/e5", None, ("/dbfs/models/e5", None)),
        ("file:/srv/models/e5", None, ("/srv/models/e5", None)),
        ("file:///srv/models/../e5", None, ("/srv/e5", None)),
        ("acme/embedder", "main", ("acme/embedder", "main")),
        ("/srv/models/e5", None, ("/srv/models/e5", None)),
    ],
)
def test_names_lead_to_directories_and_hub_ids(name: str, revision: str | None, found: tuple[str, str | None]) -> None:
    assert resolve_name(name, revision) == found


@pytest.mark.parametrize(
    ("name", "revision", "told"),
    [
        ("hf://embedder", None, "write hf://ORG/NAME"),
        ("hf://datasets/acme/texts", None, "no model of the hub"),
        ("hf:acme/embedder", None, "write hf://ORG/NAME"),
        ("hf://acme/embedder/onnx", None, "hf download acme/embedder --include"),
        ("hf://acme/embedder@v1", "v2", "tell one of them"),
    ],
)
def test_what_names_no_model_is_told(name: str, revision: str | None, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        resolve_name(name, revision)


def test_a_model_of_the_hub_s_cache_is_opened_by_its_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "models--acme--embedder"
    (cache / "snapshots").mkdir(parents=True)
    make_encoder(cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("hf://acme/embedder", f"hf://acme/embedder@{COMMIT}", "acme/embedder"):
        files = open_model(*resolve_name(name, None))
        assert files.config["model_type"] == "bert"
