"""Pickled weights made safetensors, in a process of its own, which `importing` starts.

A pickle is a program. torch's restricted unpickler runs none of it that does more than make tensors; in case that has a
hole, and for what it does not bound, this process has no network, starts no other, writes nowhere but to its target,
sees nothing of the environment, and is ended by the kernel where it takes more memory, time or disk than weights need.

One line of JSON comes in, one goes out: what was written, or why nothing was.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # of Linux, `unshare`
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Of Python's audit: what is no business of this process. Whoever gets so far cannot take the hook away again.
_FORBIDDEN = (
    *(
        "socket.",
        "subprocess.",
        "os.system",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.kill",
    ),
    *("pty.", "signal.pthread_kill", "ctypes.dlopen", "ctypes.dlsym", "ftplib.", "http.", "webbrowser."),
)
_CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_CHANGES |= {"os.chown", "os.utime", "shutil.move", "shutil.rmtree", "shutil.copyfile"}
_MOST_OF_FILE = 4  # times a file's size its tensors may have, which views of a small one could exceed
_SPARE_BYTES = 64 << 20
# Where trainers put a model's tensors, beside those of an optimizer and what else they keep.
_WRAPPED = ("state_dict", "model", "model_state_dict", "module", "weights")
_PARALLEL = "module."  # with which torch's DistributedDataParallel begins the name of each
_SHOWN = 6


class RefusedError(Exception):
    """These are no weights that can be brought in."""


def main() -> None:
    """Read one request, answer it, end."""
    asked = json.loads(sys.stdin.readline())
    network = leave_network()  # before torch has threads
    import torch

    torch.set_num_threads(1)
    target = Path(asked["target"])
    bound(**asked["bounds"])
    watch(target)
    try:
        told = convert([Path(path) for path in asked["files"]], target, **asked["options"])
        answer: dict[str, Any] = {**told, "network": network}
    except MemoryError:
        answer = {"refused": "it wants more memory than its size explains"}
    except RefusedError as error:
        answer = {"refused": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever torch has against it
        answer = {"refused": explain(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # what was unpickled is not asked what it wants to do at the end


def leave_network() -> str:
    """Go where there is no network, if the system lets us; says what was done. Sockets are refused in any case."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None, use_errno=True)
        if library.unshare(_NEW_NETWORK) == 0 or library.unshare(_NEW_USER | _NEW_NETWORK) == 0:
            return "a network namespace of its own, and no sockets"
    return "no sockets; the system gave no network namespace"


def bound(*, memory_bytes: int, cpu_s: int, file_bytes: int) -> None:
    """Have the kernel end this process where it takes more than that.

    Args:
        memory_bytes: Of address space, beside what Python and torch have by now.
        cpu_s: Processor seconds.
        file_bytes: Of any file that it writes.
    """
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, _address_space() + memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS bounds no address space
            resource.setrlimit(limit, (value, value))


def watch(target: Path) -> None:
    """From now on no socket, no other process, and nothing written but below the target."""
    home = os.path.realpath(target) + os.sep

    def is_outside(path: Any) -> bool:
        return not isinstance(path, str | bytes | os.PathLike) or not os.path.realpath(os.fsdecode(path)).startswith(
            home
        )

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"{event} is not for a process that reads weights")
        opens = event == "open" and isinstance(args[2], int) and args[2] & _WRITES and is_outside(args[0])
        if opens or (event in _CHANGES and is_outside(args[0])):
            raise PermissionError(f"{event} outside of the target is not for a process that reads weights")

    sys.addaudithook(audit)


def convert(files: list[Path], target: Path, *, name: str, tied: dict[str, str], shard_bytes: int) -> dict[str, Any]:
    """Write safetensors of pickled weights, read them back, and compare.

    Args:
        files: Of one model, each with other tensors.
        target: A directory.
        name: Of the file, without its suffix; of several, their number comes after it.
        tied: Names of weights that the model takes from others, by its code, with the names of these.
        shard_bytes: A file has no more, as long as a tensor does not.

    Returns:
        `tensors`, their number; `files`, what was written; `tied`, the names that were left out, with those whose
        tensor is the same.

    Raises:
        RefusedError: They hold something else than named tensors, or tensors that safetensors does not know.
    """
    written: list[tuple[Path, list[str], int]] = []
    names, left_out = set[str](), dict[str, str]()
    for file in files:
        tensors = read(file)
        if again := names & tensors.keys():
            raise RefusedError(f"{file.name} has {min(again)!r}, which is in a file before it too")
        names |= tensors.keys()
        same = {one: other for one, other in tied.items() if one in tensors and _is_same(tensors, one, other)}
        left_out |= same
        for held in _cut({key: t for key, t in tensors.items() if key not in same}, shard_bytes):
            part = target / f"{name}-{len(written):05d}.part"
            size = _write(held, part)
            written.append((part, list(held), size))
    shards = _name_shards(written, target, name)
    return {"tensors": len(names), "files": shards, "tied": left_out}


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file, by their names.

    Raises:
        RefusedError: It holds something else, or tensors that are no plain numbers.
    """
    import torch

    with file.open("rb") as opened:
        is_zip = opened.read(4) == b"PK\x03\x04"  # older files are read as a whole
    if is_zip:
        _check_plain(file)
    held = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    held = _unwrap(file.name, held)
    size = 0
    for key, tensor in held.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise RefusedError(f"{file.name} holds a {type(tensor).__name__} as {key!r:.100}, which is no tensor")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise RefusedError(f"{file.name} has {key!r:.100}, a tensor without plain numbers")
        size += tensor.numel() * tensor.element_size()
    if size > _MOST_OF_FILE * file.stat().st_size + _SPARE_BYTES:
        raise RefusedError(f"{file.name} unfolds into {size / 1e9:.1f} GB, more than its size explains")
    return {key: tensor.detach() for key, tensor in held.items()}


def _unwrap(name: str, held: Any) -> dict[Any, Any]:
    """Named tensors, also where a trainer has put them beside other things.

    Raises:
        RefusedError: There are none, or several that they could be.
    """
    if not isinstance(held, dict) or not held:
        raise RefusedError(f"{name} holds a {type(held).__name__}, and no named tensors")
    nested = {key: value for key, value in held.items() if isinstance(value, dict) and value}
    if not nested:
        is_parallel = all(isinstance(key, str) and key.startswith(_PARALLEL) for key in held)
        return {key.removeprefix(_PARALLEL): value for key, value in held.items()} if is_parallel else held
    known = [key for key in _WRAPPED if key in nested]
    if len(known) == 1 and not any(_is_tensor(value) for value in held.values()):
        return _unwrap(name, nested[known[0]])
    inside = ", ".join(f"{key!r:.100} ({_describe(value)})" for key, value in [*held.items()][:_SHOWN])
    raise RefusedError(
        f"{name} holds {inside}{', …' if len(held) > _SHOWN else ''}, and not named tensors alone or as one of "
        f"{', '.join(_WRAPPED)}; save these by themselves: torch.save(model.state_dict(), …)"
    )


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _describe(value: Any) -> str:
    if isinstance(value, dict) and value and all(map(_is_tensor, value.values())):
        return f"{len(value)} tensors"
    return f"a {type(value).__name__}"


def _check_plain(file: Path) -> None:
    """Refuse a zip whose parts are squeezed: torch maps them as they lie there, and would take that for the numbers."""
    with zipfile.ZipFile(file) as held:
        if any(part.compress_type != zipfile.ZIP_STORED for part in held.infolist()):
            raise RefusedError(f"{file.name} was zipped anew, with compression; save it anew by a plain torch.save(…)")


def explain(error: Exception) -> str:
    """What torch has against a file, in a line."""
    text = str(error)
    if "Unsupported operand" in text:
        return "torch's restricted unpickler does not read how it was pickled; save it anew by a plain torch.save(…)"
    if (mark := "WeightsUnpickler error:") in text:
        text = "it asks for something that makes no tensors: " + text.split(mark, 1)[1].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _is_same(tensors: dict[str, Tensor], one: str, other: str) -> bool:
    """Two names are one tensor: the same place, or the same numbers."""
    import torch

    a, b = tensors[one], tensors.get(other)
    return b is not None and a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


def _cut(tensors: dict[str, Tensor], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Parts of a file, in order, none with more bytes than one may have."""
    held: dict[str, Tensor] = {}
    size = 0
    for key, tensor in tensors.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if held and size + bytes_ > shard_bytes:
            yield held
            held, size = {}, 0
        held[key] = tensor
        size += bytes_
    if held:
        yield held


def _write(tensors: dict[str, Tensor], path: Path) -> int:
    """Write a file, and compare it bit by bit with what it was made of; returns the bytes of its tensors."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    places = set[int]()
    plain = dict[str, Any]()
    for key, tensor in tensors.items():  # each gets a place of its own: safetensors knows no views
        place = tensor.untyped_storage().data_ptr()
        plain[key] = tensor.contiguous() if place not in places else tensor.clone(memory_format=torch.contiguous_format)
        places.add(place)
    save_file(plain, path, metadata={"format": "pt"})
    with safe_open(path, "pt") as held:
        if set(held.keys()) != tensors.keys():
            raise RefusedError(f"{path.name} was written with other names")
        for key, tensor in tensors.items():
            back = held.get_tensor(key)
            if back.shape != tensor.shape or back.dtype != tensor.dtype or not torch.equal(_bits(back), _bits(tensor)):
                raise RefusedError(f"{key!r:.100} comes back from safetensors as another tensor")
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _bits(tensor: Tensor) -> Tensor:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _name_shards(written: list[tuple[Path, list[str], int]], target: Path, name: str) -> list[str]:
    """Give what was written the names that transformers looks for, and an index where there are several."""
    if len(written) == 1:
        written[0][0].rename(target / f"{name}.safetensors")
        return [f"{name}.safetensors"]
    where: dict[str, str] = {}
    for number, (path, keys, _) in enumerate(written, start=1):
        shard = f"{name}-{number:05d}-of-{len(written):05d}.safetensors"
        path.rename(target / shard)
        where |= dict.fromkeys(keys, shard)
    index = {"metadata": {"total_size": sum(size for *_, size in written)}, "weight_map": where}
    (target / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return sorted(set(where.values()))


def _address_space() -> int:
    """Bytes that this process has by now."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


if __name__ == "__main__":
    main()
