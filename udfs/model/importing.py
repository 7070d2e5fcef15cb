"""A model brought in once: its pickled weights become safetensors, and where they came from is written down.

Nothing here loads a pickle; `unpickling` does, in a process that is locked in.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from udfs.errors import ModelError, UnsafeModelError, first_line
from udfs.executor import python_path
from udfs.model.adapters import ADAPTER, ADAPTER_WEIGHTS, PICKLED_ADAPTER
from udfs.model.architectures import check_architecture
from udfs.model.files import KEPT, RECORD, check_links, find_model, hash_file, list_modules, open_model, walk_files
from udfs.model.json_files import load_object
from udfs.model.modules import STATIC
from udfs.model.places import resolve_name
from udfs.model.quiet import quiet_transformers
from udfs.model.unpickling import bound
from udfs.model.weights import INDEX, WEIGHTS, find_pickled, is_beside, list_shards, refuse_foreign

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SKIPPED = {"onnx", "openvino", "coreml"}  # the same model for other libraries
_SHARD_BYTES = 4_000_000_000
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")  # no tokens of hubs, no addresses of proxies
_PACKAGES = ("gristmill", "torch", "safetensors", "transformers")
_ANSWER_BYTES = 64 << 20
_TIED_S, _TIED_BYTES = 20.0, 4 << 30  # many times what a model of hundreds of layers takes without its numbers


@dataclass(frozen=True)
class Bounds:
    """What the process may take that reads a pickle.

    Args:
        memory_bytes: Beside what Python and torch take.
        wall_s: Seconds until it is killed; of processor time it may have as many.
        file_bytes: Of any file that it writes.
    """

    memory_bytes: int
    wall_s: float
    file_bytes: int


@dataclass(frozen=True)
class Imported:
    """What was brought in.

    Args:
        target: Where the model is now.
        commit: Of a hub's model.
        tensors: That were unpickled, written and compared; 0 where the weights were safetensors.
        files: The model's files.
        network: What kept the unpickling process from the network; "" where there was none.
    """

    target: Path
    commit: str | None
    tensors: int
    files: tuple[str, ...]
    network: str


def import_model(name: str, target: Path, *, revision: str | None = None, bounds: Bounds | None = None) -> Imported:
    """Fetch or read a model, and write it down as safetensors with what else it needs: no pickle, no Python.

    Nothing is at the target until all of it is there.

    Args:
        name: As `open_model` takes it.
        target: A directory that is not there yet, or empty.
        revision: Commit of a hub id.
        bounds: What the unpickling process may take; None goes by the size of its files.

    Raises:
        ModelError: There is no such model, its weights are another library's, they are no weights, or there is
            something at the target.
        UnsafeModelError: It links out of its directory, needs code of its own, or its pickle does more than hold
            weights, or takes more than weights need.
    """
    target = target.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} is there already; import into a new directory")
    root, boundary = find_model(*resolve_name(name, revision), pickled=True)
    check_links(name, root, boundary)
    if target.is_relative_to(root):
        raise ModelError(f"{target} lies in the model's own directory; import into another one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ModelError(f"{target} cannot be made: {first_line(error)}") from error
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        staged = Path(folder, "model")
        commit = None if root == boundary else root.name
        made = _stage(name, root, staged, bounds, source={"source": name, "revision": revision, "commit": commit})
        if target.exists():
            target.rmdir()
        staged.rename(target)
    return replace(made, target=target, commit=commit)


def _stage(name: str, root: Path, staged: Path, bounds: Bounds | None, *, source: dict[str, Any]) -> Imported:
    staged.mkdir()
    read = _copy_kept(root, staged)
    (first, transformer), *_ = list_modules(name, root)
    if first != STATIC and (transformer / "config.json").is_file():
        check_architecture(name, load_object(transformer / "config.json"))
    tensors, network = 0, ""
    for folder, pickles in _find_folders(name, root):
        place = staged / folder.relative_to(root)
        place.mkdir(parents=True, exist_ok=True)
        told = _unpickle(name, folder, pickles, place, bounds)
        tensors, network = tensors + told["tensors"], told["network"]
        read += [str(path.relative_to(root)) for path in pickles]
    if not list(staged.rglob("*.safetensors")):
        refuse_foreign(name, root)
        raise ModelError(f"model {name!r} has no weights in {root}")
    if not list(staged.rglob(ADAPTER)):  # its base may not be here
        _check(name, root, staged)
    written = {str(path.relative_to(staged)): hash_file(path) for path in walk_files(staged)}
    record = {
        **source,
        "imported_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "read": {path: hash_file(root / path) for path in sorted(read)},
        "written": dict(sorted(written.items())),
        "tensors_compared": tensors,
        "unpickled_with": network,
        "versions": _versions(),
    }
    (staged / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Imported(staged, None, tensors, tuple(sorted(written)), network)


def _copy_kept(root: Path, staged: Path) -> list[str]:
    """Copy what decides an answer, but for pickles' indices; returns the paths below the root."""
    copied = []
    for path in _wanted_files(root):
        if (
            path.suffix in KEPT
            and not path.name.endswith((".bin.index.json", ".pt.index.json"))
            and path.name != RECORD
        ):
            place = staged / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            copied.append(str(path.relative_to(root)))
    return copied


def _find_folders(name: str, root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Directories of a model that have pickled weights alone, with the files that hold these."""
    for folder in sorted({path.parent for path in _wanted_files(root)}):
        held = (ADAPTER_WEIGHTS,) if (folder / ADAPTER).is_file() else (WEIGHTS, INDEX)
        if not any((folder / file).is_file() for file in held) and list(find_pickled(folder)):
            yield folder, _choose_pickles(name, folder)


def _choose_pickles(name: str, folder: Path) -> list[Path]:
    if (folder / PICKLED_INDEX).is_file():
        shards = sorted(list_shards(folder, PICKLED_INDEX), key=str)
        if strange := [shard for shard in shards if not is_beside(folder, shard)]:
            raise UnsafeModelError(
                f"model {name!r}: {PICKLED_INDEX} names {strange[0]!r}, which is not a file beside it"
            )
        return [folder / str(shard) for shard in shards]
    for usual in (PICKLED_ADAPTER if (folder / ADAPTER).is_file() else PICKLED, PICKLED):
        if (folder / usual).is_file():
            return [folder / usual]
    found = list(find_pickled(folder))
    if len(found) > 1:
        told = ", ".join(path.name for path in found)
        raise ModelError(f"model {name!r} has several pickles, {told}; leave the one that holds its weights")
    return found


def _unpickle(name: str, folder: Path, pickles: list[Path], place: Path, bounds: Bounds | None) -> dict[str, Any]:
    """Have a process make safetensors of pickles; what it told.

    Raises:
        UnsafeModelError: It refused them, or was ended.
    """
    bounds = bounds or _bounds_of(pickles)
    is_adapter = (folder / ADAPTER).is_file()
    asked = {
        "files": [str(path.resolve()) for path in pickles],
        "target": str(place),
        "bounds": {
            "memory_bytes": bounds.memory_bytes,
            "cpu_s": max(1, int(bounds.wall_s)),
            "file_bytes": bounds.file_bytes,
        },
        "options": {
            "name": ADAPTER_WEIGHTS.removesuffix(".safetensors") if is_adapter else "model",
            "tied": {} if is_adapter else _find_tied(folder),
            "shard_bytes": 1 << 62 if is_adapter else _SHARD_BYTES,  # peft knows no shards
        },
    }
    told = _run(asked, place, bounds.wall_s)
    if "refused" in told:
        raise UnsafeModelError(
            f"model {name!r}: {', '.join(path.name for path in pickles[:3])} is not brought in: {told['refused']}"
        )
    return told


def _run(asked: dict[str, Any], place: Path, wall_s: float) -> dict[str, Any]:
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "udfs.model.unpickling"],
            env={**environment, "PYTHONPATH": python_path(), "HOME": str(place), "OMP_NUM_THREADS": "1"},
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(asked).encode() + b"\n", timeout=wall_s)
        except subprocess.TimeoutExpired:
            return {"refused": f"it took more than {wall_s:.0f} s, which weights of its size do not need"}
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return _read_answer(out, log, process.returncode)


def _read_answer(out: Any, log: Any, code: int) -> dict[str, Any]:
    """What the process told, which may have been taken over; or how it ended."""
    out.seek(0)
    with contextlib.suppress(ValueError, RecursionError):
        told = json.loads((out.read(_ANSWER_BYTES).splitlines() or [b""])[-1])
        if isinstance(told, dict) and isinstance(told.get("refused"), str):
            return {"refused": told["refused"][:500]}
        if code == 0 and isinstance(told.get("tensors"), int) and isinstance(told.get("network"), str):
            return told
    ended = {-signal.SIGXCPU: "it took more time than weights need", -signal.SIGXFSZ: "it wrote more than weights are"}
    log.seek(0)
    words = log.read(1 << 20).decode(errors="replace").strip().splitlines()
    last = f": {words[-1][:200]}" if words and code > 0 else ""
    return {"refused": ended.get(code, f"the process that read it ended (exit code {code}){last}")}


def _bounds_of(pickles: list[Path]) -> Bounds:
    """What weights of that size need, several times over."""
    sizes = [path.stat().st_size for path in pickles]
    return Bounds(
        memory_bytes=4 * max(sizes) + (1 << 30),
        wall_s=180 + 120 * sum(sizes) / 1e9,
        file_bytes=4 * max(sizes) + (256 << 20),
    )


def _find_tied(folder: Path) -> dict[str, str]:
    """Names of weights that transformers takes from others, of the class that the model was saved from.

    A config.json may ask for a million layers, so a fork asks, which is ended then: each name has a tensor of its own
    in that case, and the file is larger.
    """
    quiet_transformers()
    import torch  # noqa: F401 - so that the fork has them
    import transformers  # noqa: F401

    context = multiprocessing.get_context("fork")
    answer, told = context.Pipe(duplex=False)
    process = context.Process(target=_tell_tied, args=(folder, told), daemon=True)
    process.start()
    told.close()
    try:
        return dict(json.loads(answer.recv_bytes())) if answer.poll(_TIED_S) else {}
    except EOFError:
        return {}
    finally:
        process.kill()
        process.join()


def _tell_tied(folder: Path, told: Connection) -> None:
    import torch
    import transformers

    bound(memory_bytes=_TIED_BYTES, cpu_s=math.ceil(_TIED_S), file_bytes=1 << 20)
    tied: dict[str, str] = {}
    with contextlib.suppress(Exception):  # whatever a config.json makes transformers raise
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        kind = getattr(transformers, str((config.architectures or [""])[0]), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            with torch.device("meta"):
                found = getattr(kind(config), "all_tied_weights_keys", {})
            tied = {str(one): str(other) for one, other in found.items()}
    told.send_bytes(json.dumps(tied).encode())


def _check(name: str, root: Path, staged: Path) -> None:
    """What was made is a model that gristmill opens.

    Raises:
        ModelError: As of `open_model`, by the name that the user gave.
    """
    try:
        open_model.__wrapped__(str(staged))
    except ModelError as error:
        told = error.message.replace(repr(str(staged)), repr(name))
        raise type(error)(told.replace(str(staged), str(root))) from error


def _wanted_files(root: Path) -> Iterator[Path]:
    for path in walk_files(root):
        folders = path.relative_to(root).parts[:-1]
        hidden = any(part.startswith((".", "checkpoint-")) or part in _SKIPPED for part in folders)
        if not hidden and not path.name.startswith("."):
            yield path


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
