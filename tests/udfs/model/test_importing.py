"""Models with pickled weights, brought in once: the same tensors, the same answers; a hostile pickle does nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForSeq2SeqLM

from tests.adapters import save_adapter
from tests.engine_rows import undisturbed_rows
from tests.models import make_encoder, write_json
from tests.random_writers import make_writer, save_writer
from tests.writers import make_translator
from udfs.errors import ModelError, UnsafeModelError
from udfs.model import importing
from udfs.model.files import RECORD, open_model
from udfs.model.importing import Bounds, import_model
from udfs.tasks.registry import make_spec

TEXTS = ["red kettle", "the dog is not very good", "tea"]
_SMALL = Bounds(memory_bytes=256 << 20, wall_s=100, file_bytes=64 << 20)


def _pickle(
    folder: Path, tensors: dict[str, Any] | None = None, *, name: str = "pytorch_model.bin", **how: Any
) -> Path:
    """Put pickled weights in the place of safetensors."""
    held = load_file(folder / "model.safetensors") if tensors is None else tensors
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(held, folder / name, **how)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(make_encoder(tmp_path / "model"))


def _vectors(path: Path | str) -> list[list[float]]:
    open_model.cache_clear()
    spec = make_spec(task="feature-extraction", model=str(path), precision="float32")
    return [row["embedding"] for row in undisturbed_rows(TEXTS, spec)]


def test_the_refusal_names_the_command_that_brings_the_model_in_with_the_same_answers(
    model: Path, tmp_path: Path
) -> None:
    wanted = _vectors(model)
    held = load_file(model / "model.safetensors")
    (model / "modeling_own.py").write_text("raise SystemExit('it ran')")
    (model / "training_args.bin").write_bytes(b"not to be read")
    _pickle(model)
    open_model.cache_clear()
    with pytest.raises(UnsafeModelError, match=f"`gristmill import {model} models/model` makes safetensors"):
        open_model(str(model))
    made = import_model(str(model), tmp_path / "in/here")
    assert _vectors(made.target) == wanted
    found = load_file(made.target / "model.safetensors")
    assert found.keys() == held.keys()
    assert all(torch.equal(found[key], held[key]) for key in held)
    assert made.tensors == len(held)
    suffixes = {path.suffix for path in made.target.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt"}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["here"]


def test_what_was_read_and_written_is_written_down(model: Path, tmp_path: Path) -> None:
    before = open_model(str(model)).hashes()
    _pickle(model)
    made = import_model(str(model), tmp_path / "out")
    record = json.loads((made.target / RECORD).read_text())
    assert record["source"] == str(model)
    assert {"config.json", "pytorch_model.bin", "1_Pooling/config.json"} <= record["read"].keys()
    assert record["versions"].keys() >= {"python", "torch", "safetensors"}
    assert "no sockets" in record["unpickled_with"]
    hashes = open_model(str(made.target)).hashes()
    assert hashes == record["written"]
    assert RECORD not in hashes
    assert {name for name in before if before[name] != hashes[name]} <= {"model.safetensors"}


@pytest.mark.long
def test_shards_are_read_one_after_the_other_and_indexed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, held = _vectors(model), load_file(model / "model.safetensors")
    half = len(held) // 2
    shards = {
        "pytorch_model-1.bin": dict(list(held.items())[:half]),
        "pytorch_model-2.bin": dict(list(held.items())[half:]),
    }
    for name, tensors in shards.items():
        torch.save(tensors, model / name)
    index = {key: name for name, tensors in shards.items() for key in tensors}
    write_json(model / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": index})
    (model / "model.safetensors").unlink()
    monkeypatch.setattr("udfs.model.importing._SHARD_BYTES", 20_000)
    made = import_model(str(model), tmp_path / "out")
    told = json.loads((made.target / "model.safetensors.index.json").read_text())
    assert told["weight_map"].keys() == held.keys()
    files = sorted(made.target.glob("*.safetensors"))
    assert len(files) > 2
    assert set(told["weight_map"].values()) == {path.name for path in files}
    assert _vectors(made.target) == wanted
    write_json(model / "pytorch_model.bin.index.json", {"weight_map": {"w": "../elsewhere.bin"}})
    with pytest.raises(UnsafeModelError, match=r"names '../elsewhere\.bin'"):
        import_model(str(model), tmp_path / "again")


@pytest.mark.long
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_written_once_where_the_model_ties_them(tmp_path: Path, tied: bool) -> None:
    path = Path(save_writer(tmp_path / "model", tie_word_embeddings=tied))
    held = load_file(path / "model.safetensors")
    spec = make_spec(task="text-generation", model=str(path), max_new_tokens=8, precision="float32")
    wanted = [row["text"] for row in undisturbed_rows(["abc"], spec)]
    if tied:
        held["lm_head.weight"] = held["model.embed_tokens.weight"]
    _pickle(path, held)
    made = import_model(str(path), tmp_path / "out")
    assert ("lm_head.weight" in load_file(made.target / "model.safetensors")) is not tied
    spec = make_spec(task="text-generation", model=str(made.target), max_new_tokens=8, precision="float32")
    assert [row["text"] for row in undisturbed_rows(["abc"], spec)] == wanted


def test_a_config_of_more_layers_than_any_model_has_holds_nobody_up(tmp_path: Path, monkeypatch: Any) -> None:
    path = Path(save_writer(tmp_path / "model", tie_word_embeddings=True))
    config = json.loads((path / "config.json").read_text())
    assert importing._find_tied(path) == {"lm_head.weight": "model.embed_tokens.weight"}
    monkeypatch.setattr(importing, "_TIED_S", 2.0)
    more = {"num_hidden_layers": 50_000, "layer_types": None}
    write_json(path / "config.json", {key: value for key, value in (config | more).items() if value is not None})
    assert importing._find_tied(path) == {}


@pytest.mark.long
def test_a_translator_that_is_pickled_translates_as_transformers_does(tmp_path: Path) -> None:
    path = Path(make_translator(tmp_path / "model", "marian"))
    vocabulary = len(json.loads((path / "vocab.json").read_text()))
    ends = {"pad_token_id": vocabulary - 1, "eos_token_id": 0, "forced_eos_token_id": 0}
    make_writer("Marian", vocab_size=vocabulary, **ends).save_pretrained(path)
    made = AutoModelForSeq2SeqLM.from_pretrained(path)
    torch.save(made.state_dict(), path / "pytorch_model.bin")  # each name, tied ones too, as Marian's are on the hub
    asked = {"task": "translation", "target_lang": "de", "max_new_tokens": 12, "precision": "float32"}
    wanted = undisturbed_rows(["the red kettle", "tea"], make_spec(model=str(path), **asked))
    (path / "model.safetensors").unlink()
    target = import_model(str(path), tmp_path / "out").target
    open_model.cache_clear()
    found = undisturbed_rows(["the red kettle", "tea"], make_spec(model=str(target), **asked))
    assert [row["text"] for row in found] == [row["text"] for row in wanted]
    assert all(row["error"] is None for row in found)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(target)
    assert all(torch.equal(loaded.state_dict()[key], t) for key, t in made.state_dict().items())


@pytest.mark.long
def test_a_module_whose_weights_alone_are_pickled_is_brought_in(model: Path, tmp_path: Path) -> None:
    """As LaBSE's 2_Dense."""
    dense = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    told = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": "torch.nn.Tanh"}
    write_json(model / "2_Dense/config.json", told)
    torch.save(dense, model / "2_Dense/pytorch_model.bin")
    modules = json.loads((model / "modules.json").read_text())[:2]
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    write_json(model / "modules.json", modules)
    with pytest.raises(UnsafeModelError, match="gristmill import"):
        _vectors(model)
    made = import_model(str(model), tmp_path / "out")
    assert made.tensors == 2
    wanted = SentenceTransformer(str(made.target), device="cpu").encode(TEXTS)
    torch.testing.assert_close(torch.tensor(_vectors(made.target)), torch.tensor(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_an_adapter_that_is_pickled_is_merged_as_before(tmp_path: Path) -> None:
    base = make_encoder(tmp_path / "base")
    adapter = tmp_path / "adapter"
    save_adapter(AutoModel.from_pretrained(base), adapter, base=base, target_modules=["query"])
    wanted = _vectors(adapter)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert _vectors(import_model(str(adapter), tmp_path / "out").target) == wanted


def test_a_model_of_safetensors_is_copied_without_a_process(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "pytorch_model.bin").write_bytes(b"never read")
    monkeypatch.setattr("udfs.model.importing._run", lambda *_: pytest.fail("unpickled"))
    made = import_model(str(model), tmp_path / "out")
    assert (made.tensors, made.network) == (0, "")
    assert _vectors(made.target) == _vectors(model)


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


def _hostile(mark: Path) -> dict[str, Any]:
    return {
        "system": _Call(os.system, f"touch {mark}"),
        "eval": _Call(eval, f"open({str(mark)!r}, 'w').close()"),
        "exec": _Call(exec, f"open({str(mark)!r}, 'w').close()"),
        "open": _Call(open, str(mark), "w"),
        "loop": _Call(eval, "[0 for i in iter(int, 1)]"),
        "import": _Call(__import__, "antigravity"),
        "memory": _Call(bytearray, 1 << 44),
        "connect": _Call(socket.create_connection, ("127.0.0.1", 9)),
    }


@pytest.mark.parametrize("how", ["zip", pytest.param("plain", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in ("system", "memory") else pytest.mark.long)
        for kind in sorted(_hostile(Path("x")))
    ],
)
def test_a_hostile_pickle_does_nothing_but_fail(model: Path, tmp_path: Path, kind: str, how: str) -> None:
    mark = tmp_path / "ran"
    bad = {**load_file(model / "model.safetensors"), "w": _hostile(mark)[kind]}
    (model / "model.safetensors").unlink()
    if how == "zip":
        torch.save(bad, model / "pytorch_model.bin")
    else:
        (model / "pytorch_model.bin").write_bytes(pickle.dumps({"w": _hostile(mark)[kind]}))
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin is not brought in: "):
        import_model(str(model), tmp_path / "out/here")
    assert not mark.exists()
    assert not list((tmp_path / "out").iterdir())


def _squeeze(model: Path) -> None:
    """Zeros that were squeezed into a few bytes."""
    path, other = _pickle(model, {"w": torch.zeros(50_000_000)}) / "pytorch_model.bin", model / "other"
    with zipfile.ZipFile(path) as held, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for name in held.namelist():
            new.writestr(name, held.read(name))
    other.replace(path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda m: _pickle(m, {"w": "text"}), "a str as 'w'"),
        pytest.param(lambda m: (_pickle(m) / "pytorch_model.bin").write_bytes(b""), "", marks=pytest.mark.long),
        pytest.param(_squeeze, "", marks=pytest.mark.long),
    ],
)
def test_what_is_no_weights_is_told(model: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(model)
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin is not brought in: ") as caught:
        import_model(str(model), tmp_path / "out")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        pytest.param(
            Bounds(memory_bytes=1 << 20, wall_s=100, file_bytes=1 << 30), "memory|exit code", marks=pytest.mark.long
        ),
        (Bounds(memory_bytes=1 << 30, wall_s=0.2, file_bytes=1 << 30), "took more than 0 s"),
        pytest.param(
            Bounds(memory_bytes=1 << 30, wall_s=100, file_bytes=1000),
            "wrote more than weights are|File too large",
            marks=pytest.mark.long,
        ),
    ],
    ids=["memory", "time", "disk"],
)
def test_a_process_that_takes_more_than_weights_need_is_ended(
    model: Path, tmp_path: Path, bounds: Bounds, told: str
) -> None:
    _pickle(model, {"w": torch.ones(4_000_000)})
    with pytest.raises(UnsafeModelError, match=told):
        import_model(str(model), tmp_path / "out", bounds=bounds)
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda m: (m / "model.safetensors").rename(m / "tf_model.h5"), "TensorFlow's weights"),
        (lambda m: (m / "model.safetensors").rename(m / "flax_model.msgpack"), "Flax's weights"),
        (lambda m: (m / "model.safetensors").rename(m / "q4.gguf"), "GGUF"),
        (lambda m: (m / "model.safetensors").unlink(), "has no weights"),
        (lambda m: write_json(_pickle(m) / "config.json", {"model_type": "new", "auto_map": {}}), "asks to run Python"),
        (
            lambda m: (_pickle(m) / "pytorch_model.bin").rename(m / "a.pt") and shutil.copy(m / "a.pt", m / "b.pt"),
            "several",
        ),
        (lambda m: write_json(_pickle(m) / "pytorch_model.bin.index.json", {"weight_map": {}}), "names {}"),
        (lambda m: write_json(_pickle(m) / "pytorch_model.bin.index.json", {"weight_map": {"w": ["a"]}}), r"\['a'\]"),
        (lambda m: ((m / "model.safetensors").unlink(), os.mkfifo(m / "pytorch_model.bin")), "has no weights"),
        (lambda m: (m / "extra").symlink_to("/etc"), "a link out of the model's directory"),
    ],
)
def test_a_model_that_has_no_way_in_is_refused(
    model: Path, tmp_path: Path, spoil: Callable[[Path], Any], told: str
) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=told):
        import_model(str(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_are_read_beside_safetensors_of_another_name(model: Path, tmp_path: Path) -> None:
    held = load_file(model / "model.safetensors")
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    _pickle(model)
    assert import_model(str(model), tmp_path / "out").tensors == len(held)


def test_a_target_that_is_a_link_is_what_it_leads_to(model: Path, tmp_path: Path) -> None:
    for number, there in enumerate((True, False)):
        real, link = tmp_path / f"real{number}", tmp_path / f"link{number}"
        if there:
            real.mkdir()
        link.symlink_to(real)
        assert import_model(str(model), link).target == real
    (tmp_path / "inside").symlink_to(model)
    with pytest.raises(ModelError, match="lies in the model's own directory"):
        import_model(str(model), tmp_path / "inside/out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="cannot be made"):
        import_model(str(model), tmp_path / "file/out")


def test_what_is_at_the_target_stays(model: Path, tmp_path: Path) -> None:
    """The model has safetensors, which takes no process."""
    (tmp_path / "out").mkdir()
    import_model(str(model), tmp_path / "out")
    with pytest.raises(ModelError, match="is there already"):
        import_model(str(model), tmp_path / "out")
    with pytest.raises(ModelError, match="lies in the model's own directory"):
        import_model(str(model), model / "out")
