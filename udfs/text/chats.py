"""A chat as the model's own template writes it: untrusted, and so rendered in a process with bounds (see `rendering`).

Source: transformers, `render_jinja_template`; rendered here, since transformers would bring torch into every worker.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from udfs.errors import ModelError
from udfs.executor import python_path
from udfs.model.files import ModelFiles


class RefusedError(ModelError):
    """A chat template has something against a chat.

    Attributes:
        raised: The type of what it raised; its text may quote the chat.
    """

    raised: str


Messages = Sequence[tuple[str, str]] | Mapping[str, Any]
Chat = Callable[[Sequence[Messages]], list[str | RefusedError]]
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_AT_ONCE = 256  # chats that are handed over together
_KEPT = 4  # processes of templates that may be asked for again
_TRIES = 2  # a process that is killed from outside is no fault of its template


def read_template(files: ModelFiles) -> str | None:
    """The chat template that a model comes with."""
    return _find_template(files)


def has_chat(files: ModelFiles) -> bool:
    """Whether the model comes with a chat template."""
    return _find_template(files) is not None


def names_read(files: ModelFiles) -> frozenset[str]:
    """What a model's chat template reads beside what it sets itself."""
    return _open(files, {}).reads if has_chat(files) else frozenset()


def make_chat(files: ModelFiles, more: Mapping[str, Any] | None = None) -> Chat:
    """A function from chats, each of messages as roles with texts, to the prompts that have the model answer them.

    A chat may be a mapping as well: of `messages`, as the template is to see them, of `tools`, and of `continue` where
    its last message is to be written on.

    In the place of a prompt is an error where the template refuses those messages.

    Args:
        files: The model's.
        more: What the template is given beside the messages.

    Raises:
        ModelError: The model has no chat template, or one that is no Jinja2. So does the function, where the template
            takes more time or memory than any needs.
    """
    if not has_chat(files):
        raise ModelError(f"model {files.name!r} has no chat template; ask it by `prompt`, or take an instruct model")
    template = _open(files, more or {})

    def chat(chats: Sequence[Messages]) -> list[str | RefusedError]:
        parts = (chats[start : start + _AT_ONCE] for start in range(0, len(chats), _AT_ONCE))
        return [prompt for part in parts for prompt in template.render(part)]

    return chat


def _open(files: ModelFiles, more: Mapping[str, Any]) -> _Template:
    names = {**_special_tokens(files), **more}
    return _template(files.name, json.dumps({"template": _find_template(files), "names": names}), os.getpid())


class _Template:
    """A model's template, in a process that ends with it.

    Attributes:
        reads: Names that the template reads, beside what it sets itself.

    Args:
        model: Its model's name.
        source: The first line that the process is told.
    """

    def __init__(self, model: str, source: str) -> None:
        self._name, self._source = f"model {model!r}: its chat template", source
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.reads = frozenset[str]()
        self.render([])

    def render(self, chats: Sequence[Messages]) -> list[str | RefusedError]:
        """One prompt a chat, or what the template has against it.

        Raises:
            ModelError: The template does not parse, or takes too much.
        """
        with self._lock:
            for _ in range(_TRIES):
                answer = self._try_to_render(chats)
                if answer is not None:
                    return self._check(answer, chats)
                code, self._process = _end(self._process), None
                if code == -signal.SIGXCPU:
                    return self._check({"excess": "time"}, chats)
        raise ModelError(f"{self._name} makes its process end again and again (exit code {code})")

    def _try_to_render(self, chats: Sequence[Messages]) -> dict[str, Any] | None:
        """What the process answers; None where it ends instead."""
        if self._process is None:
            self._process = _start()
            weakref.finalize(self, _end, self._process)
            answer = _exchange(self._process, self._source)
            if answer is None or "made" not in answer:
                return answer and {**answer, "parses": False}
            self.reads = frozenset(answer["made"])
        return _exchange(self._process, json.dumps(chats))

    def _check(self, answer: dict[str, Any], chats: Sequence[Messages]) -> list[str | RefusedError]:
        if "made" in answer:
            return [
                told if isinstance(told, str) else self._refusal(told, messages)
                for told, messages in zip(answer["made"], chats, strict=True)
            ]
        if told := answer.get("excess"):
            raise ModelError(
                f"{self._name} takes more {told} than any has to, and is not rendered; take a model that you trust"
            )
        raise ModelError(f"{self._name} does not parse: {answer['reason']}")

    def _refusal(self, told: dict[str, str], messages: Messages) -> RefusedError:
        asked = messages["messages"] if isinstance(messages, Mapping) else messages
        roles = ", ".join(str(m.get("role")) if isinstance(m, Mapping) else m[0] for m in asked)
        error = RefusedError(f"{self._name} refuses messages of {roles}: {told['reason']}")
        error.raised = told["raised"]
        return error


@functools.lru_cache(_KEPT)
def _template(model: str, source: str, pid: int) -> _Template:
    """One for all tasks of a process; a fork of it needs its own."""
    return _Template(model, source)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "udfs.text.rendering"],
        env={**os.environ, "PYTHONPATH": python_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for its parent
    )


def _exchange(process: Any, line: str) -> dict[str, Any] | None:
    """What it answers to a line; None where it ends instead."""
    try:
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
        told = process.stdout.readline()
    except BrokenPipeError:
        return None
    return json.loads(told) if told.endswith(b"\n") else None


def _end(process: Any) -> int:
    """Have it end; how it did."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    return int(process.wait())


def _find_template(files: ModelFiles) -> str | None:
    """The template, of several the one that is called so.

    Raises:
        ModelError: What stands in its place is no text.
    """
    for folder in files.folders:
        if (folder / "chat_template.jinja").is_file():
            try:
                return (folder / "chat_template.jinja").read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"{folder / 'chat_template.jinja'} cannot be read: {error}") from error
    told = files.read_json("chat_template.json").get("chat_template")
    told = told or files.read_json("tokenizer_config.json").get("chat_template")
    if isinstance(told, list) and all(isinstance(entry, dict) for entry in told):
        told = {entry.get("name"): entry.get("template") for entry in told}.get("default")
    if not isinstance(told, str | None):
        raise ModelError(f"model {files.name!r} has the chat template {told!r:.60}, which is no text; mend it")
    return told


def _special_tokens(files: ModelFiles) -> dict[str, str]:
    told = {**files.read_json("special_tokens_map.json"), **files.read_json("tokenizer_config.json")}
    tokens = {name: told.get(name) for name in _SPECIAL}
    return {n: v["content"] if isinstance(v, dict) else v for n, v in tokens.items() if isinstance(v, str | dict)}
