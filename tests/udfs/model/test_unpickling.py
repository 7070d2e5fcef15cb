"""Pickles read, here in the test's own process; and what is closed to theirs, should torch's unpickler have a hole."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from udfs.executor import python_path
from udfs.model.unpickling import RefusedError, convert, explain, read

_TRIES = {
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)",
    "bind": "import socket; socket.socket().bind(('127.0.0.1', 0))",
    "system": "os.system('touch {mark}')",
    "fork": "os.fork()",
    "spawn": "os.posix_spawn('/bin/touch', ['touch', '{mark}'], {{}})",
    "exec": "os.execv('/bin/touch', ['touch', '{mark}'])",
    "popen": "import subprocess; subprocess.Popen(['touch', '{mark}'])",
    "open": "open('{mark}', 'w')",
    "remove": "os.remove('{kept}')",
    "rename": "os.rename('{kept}', '{mark}')",
    "link": "os.symlink('/etc', '{mark}')",
    "library": "import ctypes; ctypes.CDLL('libc.so.6').system(b'touch {mark}')",
    "memory": "bytearray(1 << 33)",
}


@pytest.mark.parametrize("tried", _TRIES)
def test_nothing_but_the_target_is_open_to_the_process(tmp_path: Path, tried: str) -> None:
    mark, kept, target = tmp_path / "mark", tmp_path / "kept", tmp_path / "target"
    kept.write_text("")
    target.mkdir()
    code = (
        "import os\nfrom pathlib import Path\nfrom udfs.model import unpickling\n"
        "unpickling.leave_network()\nunpickling.bound(memory_bytes=1 << 30, cpu_s=60, file_bytes=1 << 20)\n"
        f"unpickling.watch(Path({str(target)!r}))\nopen({str(target / 'fine')!r}, 'w').close()\n"
        f"try:\n    {_TRIES[tried].format(mark=mark, kept=kept, port=9)}\n"
        "except (PermissionError, MemoryError) as error:\n    print('refused', type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("refused "), done.stderr
    assert kept.exists()
    assert not mark.exists()
    assert (target / "fine").exists()


HELD = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3, dtype=torch.float16)}


def _convert(file: Path, *, tied: dict[str, str] | None = None, shard_bytes: int = 1 << 30) -> dict[str, Any]:
    out = file.parent / "out"
    out.mkdir()
    told = convert([file], out, name="model", tied=tied or {}, shard_bytes=shard_bytes)
    assert sorted(path.name for path in out.glob("*.safetensors")) == told["files"]
    return {key: tensor for path in out.glob("*.safetensors") for key, tensor in load_file(path).items()}


_OPTIMIZER = {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}
_WRAPS: list[Callable[[Any], Any]] = [
    dict,
    OrderedDict,
    lambda held: {"epoch": 3, "state_dict": held, "pytorch-lightning_version": "2.1", "optimizer_states": [_OPTIMIZER]},
    lambda held: {"model": OrderedDict(held), "optimizer": _OPTIMIZER, "step": 7},
    lambda held: {"model_state_dict": held, "optimizer_state_dict": _OPTIMIZER, "loss": 0.5},
    lambda held: {"module": held},
    lambda held: {"model": {"state_dict": held}},
    lambda held: {"model": {f"module.{key}": tensor for key, tensor in held.items()}},
]


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "older"])
@pytest.mark.parametrize("wrap", _WRAPS)
def test_files_of_any_age_are_read(tmp_path: Path, how: dict[str, Any], wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(HELD), tmp_path / "w.bin", **how)
    found = _convert(tmp_path / "w.bin")
    assert found.keys() == HELD.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in HELD.items())


def test_views_and_odd_numbers_are_written_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    odd = {
        "view": whole[1:3, ::2],
        "turned": whole.T,
        "same": whole,
        "none": torch.empty(0, 4),
        "one": torch.tensor(7),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "truth": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(odd, tmp_path / "w.bin")
    found = _convert(tmp_path / "w.bin")
    for key, tensor in odd.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found[key].float().numpy(), tensor.detach().float().numpy())


def test_a_tied_weight_is_left_out_where_it_is_the_same_and_kept_where_it_is_not(tmp_path: Path) -> None:
    whole = torch.arange(8.0)
    torch.save({"a": whole, "b": whole, "c": whole.clone(), "d": whole + 1, "e": whole}, tmp_path / "w.bin")
    found = _convert(tmp_path / "w.bin", tied={"b": "a", "c": "a", "d": "a", "x": "a", "e": "y"})
    assert sorted(found) == ["a", "d", "e"]


def test_shards_hold_what_they_may_and_each_tensor_once(tmp_path: Path) -> None:
    held = {f"w{i}": torch.full((10,), float(i)) for i in range(7)}
    torch.save(held, tmp_path / "w.bin")
    found = _convert(tmp_path / "w.bin", shard_bytes=100)
    assert all(torch.equal(found[key], tensor) for key, tensor in held.items())
    assert len(list((tmp_path / "out").glob("model-0000?-of-00004.safetensors"))) == 4


def _resize(path: Path) -> None:
    """A tensor that says it is larger than its numbers."""
    torch.save({"w": torch.ones(1 << 12)}, path)
    other = path.with_name("other")
    with zipfile.ZipFile(path) as held, zipfile.ZipFile(other, "w") as new:
        for name in held.namelist():
            data = held.read(name)
            new.writestr(name, data.replace(b"M\x00\x10", b"M\xff\xff") if name.endswith("data.pkl") else data)
    other.replace(path)


def _fill_lists(path: Path) -> None:
    """A list that holds one ten times that holds one ten times, and so on."""
    held: Any = [0]
    for _ in range(9):
        held = [held] * 10
    torch.save({"w": held}, path)


def _squeeze(path: Path) -> None:
    """The same parts, compressed: as they lie in the file, they are other numbers."""
    torch.save(HELD, path)
    other = path.with_name("other")
    with zipfile.ZipFile(path) as held, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for part in held.namelist():
            new.writestr(part, held.read(part) + bytes(4096))
    other.replace(path)


def _truncate(path: Path) -> None:
    torch.save(HELD, path)
    path.write_bytes(path.read_bytes()[:-600])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: torch.save([torch.ones(2)], p), "holds a list"),
        (lambda p: torch.save({}, p), "no named tensors"),
        (lambda p: torch.save({1: torch.ones(2)}, p), "as 1"),
        (lambda p: torch.save({"w": torch.ones(2).to_sparse()}, p), "without plain numbers"),
        (lambda p: torch.save({"w": torch.empty(4, device="meta")}, p), "without plain numbers"),
        (lambda p: torch.save({"net": {"v": torch.ones(2)}, "epoch": 3}, p), "'net' (1 tensors), 'epoch' (a int)"),
        (lambda p: torch.save({"model": HELD, "state_dict": HELD}, p), "'model' (2 tensors), 'state_dict' (2 tensors)"),
        (lambda p: torch.save({"model": HELD, "w": torch.ones(2)}, p), "save these by themselves"),
        (lambda p: torch.save({"model": {"config": {"a": 1}, "w": 3}}, p), "'config' (a dict), 'w' (a int)"),
        (lambda p: torch.save({"w": torch.ones(1).expand(1 << 40)}, p), "more than its size explains"),
        (lambda p: torch.save(torch.nn.Linear(2, 2), p), "makes no tensors"),
        (lambda p: torch.save(HELD, p, pickle_protocol=4), "torch.save(…)"),
        (lambda p: p.write_bytes(b"version https://git-lfs"), ""),
        (_truncate, ""),
        (_squeeze, "with compression"),
        (_resize, ""),
        (_fill_lists, "a list as 'w'"),
    ],
)
def test_what_is_no_weights_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], told: str) -> None:
    spoil(tmp_path / "w.bin")
    try:
        read(tmp_path / "w.bin")
    except RefusedError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - whatever torch has against it
        why = explain(error)
    else:
        pytest.fail("it was read")
    assert told in why
    assert "\n" not in why
    assert why
