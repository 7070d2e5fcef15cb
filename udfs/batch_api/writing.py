"""A model that answers requests: chats as its template has them, prompts as they are, token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from udfs.batch_api.requests import Ask, RefusedError
from udfs.batch_api.tools import Way, find_way, make_call_schema
from udfs.model.files import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.row_options import pack_text
from udfs.tasks.text_generation import TextGenerationOptions
from udfs.tasks.writing import Writing
from udfs.tasks.writing_options import WritingOptions, resolve_whole_tokens
from udfs.text.chats import RefusedError as RefusedChatError
from udfs.text.chats import has_chat, names_read, read_template
from udfs.text.questions import Question

_CHARACTERS_A_TOKEN = 512  # more than the longest token of any vocabulary has


class RequestWriting(Writing):
    """What a model writes to requests; an answer is what it is, since the service validates none."""

    _roles = ()
    strips_space = False  # what writes a text on begins with it

    def __init__(self, spec: ScoreSpec[TextGenerationOptions], files: ModelFiles) -> None:
        self._is_chat = has_chat(files)
        super().__init__(spec, files)

    def pack(self, ask: Ask, custom_id: str) -> list[str]:
        """A line's prompts as texts, with its options.

        What is drawn without a seed depends on the line's id, so that lines with one prompt differ, and a line that is
        run again does not.

        Raises:
            RefusedError: The model cannot be asked so.
        """
        options, suffix = dict(ask.options), ""
        if options.get("temperature", self._spec.options.temperature) and "seed" not in options:
            digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=4).digest()
            options["seed"] = int.from_bytes(digest, "little")
        if ask.tools is not None and "tools" not in self._reads:
            raise RefusedError("the model's chat template knows no tools", code="unsupported_parameter", param="tools")
        if ask.must_call:
            if self.calls is None:
                raise RefusedError(
                    "the model's chat template tells no way to write a call that it could be held to",
                    code="unsupported_parameter",
                    param="tool_choice",
                )
            suffix = self.calls.before
            options.pop("stop", None)  # it ends what is said, and would cut the call
            options["schema"] = make_call_schema(self.calls, ask.tools or {}, ask.must_call)
        return [pack_text(json.dumps(self._payload(prompt, suffix)), options) for prompt in ask.prompts]

    def _payload(self, prompt: Any, suffix: str) -> dict[str, Any]:
        if isinstance(prompt, Mapping):
            if not self._is_chat:
                raise RefusedError(
                    "the model has no chat template; ask it by /v1/completions", code="unsupported_model", param="model"
                )
            return {"chat": prompt, "suffix": suffix}
        if isinstance(prompt, str):
            return {"text": prompt}
        if any(token >= self.codec.size for token in prompt):
            raise RefusedError("prompt has a token that the model does not know", code="invalid_value", param="prompt")
        return {"ids": list(prompt)}

    @cached_property
    def calls(self) -> Way | None:
        """How the model's template has calls of functions written."""
        return find_way(read_template(self._files) or "")

    @cached_property
    def _reads(self) -> frozenset[str]:
        return names_read(self._files)

    def questions(self, text: str) -> list[Question]:
        return [Question((("", text),), (0, 0, 0))]

    def _render(self, questions: Sequence[Question]) -> list[str | RefusedChatError]:
        payloads = [json.loads(question.parts[0][1]) for question in questions]
        chats = iter(self.chat([p["chat"] for p in payloads if "chat" in p]) if self._is_chat else [])
        made = list[str | RefusedChatError]()
        for payload in payloads:
            prompt = next(chats) if "chat" in payload else payload.get("text", "")
            made.append(prompt + payload.get("suffix", "") if isinstance(prompt, str) else prompt)
        return made

    def _encode_questions(self, questions: Sequence[Question], prompts: Sequence[str]) -> list[list[int]]:
        payloads = [json.loads(question.parts[0][1]) for question in questions]
        # What cannot fit, however long its tokens are, is not tokenized: a line may have megabytes.
        hopeless = [len(prompt) > _CHARACTERS_A_TOKEN * self._whole for prompt in prompts]
        told = ["" if is_hopeless else prompt for prompt, is_hopeless in zip(prompts, hopeless, strict=True)]
        plain = iter(self.codec.encode([x for x, p in zip(told, payloads, strict=True) if "text" in p], special=True))
        chats = iter(self.codec.encode([x for x, p in zip(told, payloads, strict=True) if "chat" in p], special=False))
        ids = [p["ids"] if "ids" in p else next(plain) if "text" in p else next(chats) for p in payloads]
        return [[0] * (self._whole + 1) if lost else found for found, lost in zip(ids, hopeless, strict=True)]

    @cached_property
    def _whole(self) -> int:
        """Longest prompt and answer together."""
        return resolve_whole_tokens(self._files, self._spec)

    def check(self, text: str, way: WritingOptions) -> Any:
        return None
