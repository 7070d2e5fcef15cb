"""Lines of batch files, and tiny models that answer them in this process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.models import make_encoder
from tests.random_writers import save_writer
from udfs.batch_api.requests import Dialect
from udfs.batch_api.spec import BatchSpec, Served
from udfs.local import LocalEngine
from udfs.tasks.registry import make_spec
from udfs.worker.requests import answer_requests

TOOL_CHAT = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools> answer by <tool_call>{% endif %}{% for m in messages %}"
    "<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "tea?"}]


def openai_line(body: Any, *, url: str = "/v1/chat/completions", **more: Any) -> str:
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body, **more})


def chat_line(**body: Any) -> str:
    return openai_line({"model": "writer", "messages": MESSAGES, "max_tokens": 6, "temperature": 0, **body})


def anthropic_line(*, custom_id: Any = "a", **params: Any) -> str:
    told = {"model": "writer", "max_tokens": 6, "temperature": 0, "messages": MESSAGES, **params}
    return json.dumps({"custom_id": custom_id, "params": told})


class Answerer:
    """Answers lines; engines stay."""

    def __init__(self, folder: Path) -> None:
        writer = save_writer(folder / "writer")
        (folder / "writer/chat_template.jinja").write_text(TOOL_CHAT)
        shared: dict[str, Any] = {"precision": "float32", "overflow": "fail"}
        write = make_spec(
            "text-generation",
            writer,
            messages="messages",
            options_from="options",
            max_new_tokens=12,
            temperature=1.0,
            **shared,
        )
        embed = make_spec("feature-extraction", make_encoder(folder / "encoder"), **shared)
        self._models = (Served("writer", write, None), Served("encoder", None, embed))
        self._stack = contextlib.ExitStack()
        self._engines = {spec.task: self._stack.enter_context(LocalEngine(spec)) for spec in (write, embed)}

    def rows(
        self, lines: Sequence[str], dialect: Dialect, *, problems: Sequence[str | None] | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        """Rows of the result column."""
        told = problems or [None] * len(lines)
        window = pa.StructArray.from_arrays(
            [pa.array(told, pa.string()), pa.array(lines, pa.string())], ["problem", "request"]
        )
        return self.table(window, dialect, **more)

    def table(self, window: pa.Array, dialect: Dialect, **more: Any) -> list[dict[str, Any]]:
        ask = BatchSpec(dialect, self._models, **more)
        found = answer_requests([window], ask, lambda spec: self._engines[spec.task])
        return [row for part in found for row in part.to_pylist()]

    def openai(self, *lines: str) -> list[dict[str, Any]]:
        """The lines that answer OpenAI's."""
        return [json.loads(row["line"]) for row in self.rows(lines, "openai-batch")]

    def anthropic(self, *lines: str) -> list[dict[str, Any]]:
        return [json.loads(row["line"]) for row in self.rows(lines, "anthropic-batch")]

    def close(self) -> None:
        self._stack.close()


def answering(folder: Path) -> Iterator[Answerer]:
    """A fixture's body."""
    made = Answerer(folder)
    yield made
    made.close()
