"""Requests of files, laid out as a table that Spark reads: small parts, so that a kill costs little, each line once.

    PATH.gristmill/
        requests/    00000-000000.parquet: part 0 of file 0, with `source`, `line`, `problem` and `request`
        files.json   which files are laid out, as they were
        rows/        the rows that were made of them, an output as of any job (only where results are a file)

A file is read once, line by line; of all lines, what is kept in memory is a hash of each id, some seventy bytes.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError, OutputError
from jobs.folder import Folder
from jobs.paths import GLOB
from jobs.settings import BATCH_FORMATS, Settings

LAID_OUT = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("line", pa.int64()),
        pa.field("problem", pa.string()),
        pa.field("request", pa.string()),
    ]
)
_NOTE, _REQUESTS = "files.json", "requests"
_PART_LINES, _PART_BYTES = 250, 8 << 20
_BODY = re.compile(rb'^\s*(?:\xef\xbb\xbf)?\s*\{\s*"requests"\s*:\s*\[')
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_MARK = re.compile(r'"(?:[^"\\]++|\\.)*+"|["{}\[\],]', re.DOTALL)  # what tells where a value of JSON ends
_LOOK = 1 << 16
_LOOK_LINES = 1000  # that may be broken before one tells whose requests they are
_DUPLICATE = "duplicate_custom_id: the custom_id is that of another line of the file"
_NO_TEXT = "invalid_json_line: the line is not UTF-8"


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    problem: str | None = None


def lay_out(settings: Settings, *, overwrite: bool = False) -> Settings:
    """Have the requests of a job's files read by Spark; the settings as they are otherwise.

    Args:
        settings: The job.
        overwrite: Start afresh, also where a file has changed since it was laid out.

    Returns:
        The settings of the job that is run: its input is the laid out table, its output the rows.

    Raises:
        InputError: There are no such files.
        OutputError: A file has changed since, or one that is no result of the job is where the results are to be.
    """
    if not settings.models:
        return settings
    if settings.output.format in BATCH_FORMATS:
        _check_is_free(settings, overwrite=overwrite)
    if settings.input.format in BATCH_FORMATS:
        _lay_out_files(settings, Folder(work_of(settings)), overwrite=overwrite)
    return run_of(settings)


def run_of(settings: Settings) -> Settings:
    """The job that is run in a job's place, once its requests are laid out."""
    work = work_of(settings)
    if settings.input.format in BATCH_FORMATS:
        update = {"path": f"{work}/{_REQUESTS}", "key": ["source", "line"], "options": {}}
        settings = settings.model_copy(update={"input": settings.input.model_copy(update=update)})
    if settings.output.format in BATCH_FORMATS:
        rows = settings.output.model_copy(update={"path": f"{work}/rows"})
        settings = settings.model_copy(update={"output": rows})
    return settings


def work_of(settings: Settings) -> str:
    """The directory beside a job's output for what it is made of."""
    return f"{settings.output.path.rstrip('/')}.gristmill"


def read_laid_out(work: Folder) -> Iterator[dict[str, Any]]:
    """All that is laid out, by files' URIs and then by line, a part at a time."""
    files = work.read_json(_NOTE)
    parts = [name for name in work.entries(_REQUESTS, must_exist=True) if name.endswith(".parquet")]
    for uri in sorted(files, key=str.encode):
        for name in parts:
            if name.startswith(f"{files[uri]['number']:05d}-"):
                with work.reading(f"{_REQUESTS}/{name}") as stream:
                    yield from pq.read_table(pa.BufferReader(stream.read())).to_pylist()


def _check_is_free(settings: Settings, *, overwrite: bool) -> None:
    """Refuse to write over a file that somebody needs."""
    target, errors = settings.output.path, settings.output.errors
    is_begun = bool(Folder(work_of(settings)).entries())
    for path in (target, *((errors,) if errors else ())):
        folder = Folder(path)
        if folder.is_local and folder.local_path().is_dir():
            raise OutputError(f"{path} is a directory; name a file for the results")
        if folder.is_file() and not (is_begun or overwrite):
            raise OutputError(
                f"{path} is there, and no result of this job; name another file, or write over it with --overwrite"
            )


def _lay_out_files(settings: Settings, work: Folder, *, overwrite: bool) -> None:
    known: dict[str, Any] = {} if overwrite else work.find_json(_NOTE) or {}
    found = _find_files(str(settings.input.path))
    changed = [uri for uri, told in found.items() if uri in known and known[uri]["told"] != told]
    if changed:
        raise OutputError(
            f"{changed[0]} has changed since the job was begun, and answers to its old requests are there; give the "
            "results another name, or start afresh with --overwrite"
        )
    if overwrite:
        work.delete(_REQUESTS)
        work.delete(_NOTE)
    folder = Folder(str(settings.input.path))
    for uri, told in found.items():
        if uri in known:
            continue
        with folder.reading(told["name"]) as stream:
            lines = _write_parts(work, len(known), uri, read_lines(stream))
        known[uri] = {"told": told, "number": len(known), "lines": lines}
        work.write_json(_NOTE, known)
    if not any(file["lines"] for file in known.values()):
        raise InputError(f"{settings.input.path} holds no request")


def _find_files(path: str) -> dict[str, dict[str, Any]]:
    if GLOB.search(path):
        raise InputError(f"input.path {path} is a pattern; name a file of requests, or a directory of them")
    folder = Folder(path)
    found = {
        f"{path.rstrip('/')}/{file.name}".rstrip("/"): {
            "name": file.name,
            "size": file.size,
            "changed": str(file.changed_ns),
        }
        for file in sorted(folder.walk(), key=lambda file: file.name)
        if not any(part.startswith(("_", ".")) for part in file.name.split("/"))
    }
    if not found:
        raise InputError(f"there are no files at {path}")
    return found


def _write_parts(work: Folder, number: int, source: str, lines: Iterator[_Line]) -> int:
    count = part = size = 0
    held: list[_Line] = []
    work.make(_REQUESTS)
    work.delete_files(f"{_REQUESTS}/{name}" for name in work.entries(_REQUESTS) if name.startswith(f"{number:05d}-"))

    def write() -> None:
        table = pa.table(
            [
                pa.array([source] * len(held)),
                pa.array([line.number for line in held], pa.int64()),
                pa.array([line.problem for line in held], pa.string()),
                pa.array([line.text for line in held], pa.string()),
            ],
            schema=LAID_OUT,
        )
        with work.writing(f"{_REQUESTS}/{number:05d}-{part:06d}.parquet") as stream:
            pq.write_table(table, stream, compression="zstd")

    for line in lines:
        held.append(line)
        size += len(line.text)
        if len(held) == _PART_LINES or size >= _PART_BYTES:
            write()
            count, part, size, held = count + len(held), part + 1, 0, []
    if held:
        write()
    return count + len(held)


def read_lines(stream: BinaryIO) -> Iterator[_Line]:
    """The lines of a file that are not blank, by their numbers from 1 on, or the requests of a body.

    A line ends with a line feed, and a carriage return before it is no part of it; nothing else ends one.
    """
    head = _read_head(stream)
    several = _read_body(head, stream) if _BODY.match(head) else _split(head, stream)
    seen: set[int] = set()
    for number, raw in several:
        if not (raw := raw.strip(b" \t\r\n\x0b\x0c")):
            continue
        try:
            text, problem = raw.decode("utf-8-sig"), None  # files that were joined have a mark amid them
        except UnicodeDecodeError:
            text, problem = raw.decode("utf-8", "replace"), _NO_TEXT
        if not text:
            continue
        if (key := _hash_id(text)) is not None:
            problem = problem or (_DUPLICATE if key in seen else None)
            seen.add(key)
        yield _Line(number, text, problem)


def _read_head(stream: BinaryIO) -> bytes:
    head = b""
    while len(head) < _LOOK and (read := stream.read(_LOOK)):
        head += read
    return head


def _split(head: bytes, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines by their numbers; a piece at a time, as no stream of pyarrow's has lines."""
    number, rest, pieces = 0, head, list[bytes]()
    while rest:
        *whole, last = rest.split(b"\n")
        for line in whole:
            number += 1
            yield number, b"".join([*pieces, line])
            pieces = []
        pieces.append(last)
        rest = stream.read(_LOOK << 4)
    yield number + 1, b"".join(pieces)


def _read_body(head: bytes, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The requests of `{"requests": [...]}`, each as it stands there, broken or not.

    What cannot be parted is the last one: what is left where a bracket or a quote is missing, or stands after them all.
    """
    begun, decode = _BODY.match(head), codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    text, place, number, more = decode(head[begun.end() if begun else 0 :]), 0, 0, True
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing at least
        is_over = text.startswith("]", place)
        end = None if is_over else _find_end(text, place)
        if end is not None:
            number += 1
            yield number, text[place:end].encode("utf-8", "surrogateescape")
            place = end
            continue
        if not more:
            rest = text[place:].removeprefix("]").lstrip().removeprefix("}") if is_over else text[place:]
            yield number + 1, rest.encode("utf-8", "surrogateescape")
            return
        read = stream.read(max(_LOOK, len(text) - place))
        more = bool(read)
        text, place = text[place:] + decode(read, not more), 0


def _find_end(text: str, place: int) -> int | None:
    """Where the value of JSON ends that begins at a place of a list; None where the text ends before it does."""
    depth = 0
    for mark in _MARK.finditer(text, place):
        told = mark[0]
        if told == '"':
            return None
        if told in "{[":
            depth += 1
        elif depth == 0 and not told.startswith('"'):
            return max(mark.start(), place + 1)
        elif told in "}]":
            depth -= 1
            if depth == 0:
                return mark.end()
    return None


def _hash_id(text: str) -> int | None:
    """Of a line's id; None where it has none that is a string."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    custom_id = value.get("custom_id") if isinstance(value, dict) else None
    if not isinstance(custom_id, str):
        return None
    digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def find_dialect(path: str) -> str:
    """Whose requests a file holds, by its first lines.

    Raises:
        InputError: They do not tell.
    """
    folder = Folder(path)
    names = [file.name for file in sorted(folder.walk(), key=lambda file: file.name)]
    if not names:
        raise InputError(f"there is no file at {path}")
    with folder.reading(names[0]) as stream:
        head = _read_head(stream)
        if _BODY.match(head):
            return "anthropic-batch"
        for _, raw in itertools.islice(_split(head, stream), _LOOK_LINES):
            try:
                value = json.loads(raw.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict) and "params" in value:
                return "anthropic-batch"
            if isinstance(value, dict) and value.keys() & {"body", "url", "method"}:
                return "openai-batch"
    raise InputError(
        f"{path} does not tell whose requests it holds: no line has a `body` or `params`; say it by --dialect"
    )
