"""A stand-in for the few names of vLLM that gristmill calls; a tiny model writes in its place, a token a step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

REFUSED, BREAKS = 2, 3  # tokens of prompts that are refused, or that break a step
CACHED = 7


class LLMEngine:
    """Takes requests, gives each a token a step, and answers once it has ended."""

    made: LLMEngine
    write: Callable[[list[int]], list[int]]  # a prompt's answer, with its end token

    def __init__(self, args: Any) -> None:
        self.args, self.aborted, self.most = args, [], 0
        self.running: dict[str, tuple[list[int], Any, list[int]]] = {}
        type(self).made = self

    @classmethod
    def from_engine_args(cls, args: Any) -> LLMEngine:
        return cls(args)

    def add_request(self, request_id: str, prompt: Any, params: Any) -> str:
        if REFUSED in prompt["prompt_token_ids"]:
            raise ValueError("this prompt is refused")
        self.running[request_id] = (prompt["prompt_token_ids"], params, [])
        self.most = max(self.most, len(self.running))
        return f"{request_id}-of-its-own"

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.running.pop(request_id, None)

    def step(self) -> list[Any]:
        if any(BREAKS in prompt for prompt, _, _ in self.running.values()):
            raise RuntimeError("the step is broken")
        over = []
        for request_id, (prompt, params, ids) in list(self.running.items()):
            ids.append(type(self).write(prompt)[len(ids)])
            stopped = ids[-1] in params.stop_token_ids
            if stopped or len(ids) == params.max_tokens:
                answer = SimpleNamespace(token_ids=tuple(ids), finish_reason="stop" if stopped else "length")
                over.append(
                    SimpleNamespace(request_id=request_id, finished=True, outputs=[answer], num_cached_tokens=CACHED)
                )
                del self.running[request_id]
        return over


def pretend(monkeypatch: pytest.MonkeyPatch, write: Callable[[list[int]], list[int]]) -> None:
    """Have `import vllm` find the stand-in, and torch's GPU half free."""
    monkeypatch.setattr(LLMEngine, "write", staticmethod(write), raising=False)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (40, 80))
    options = {"SamplingParams": SimpleNamespace, "EngineArgs": SimpleNamespace, "LLMEngine": LLMEngine}
    parts: dict[str, dict[str, Any]] = {
        "vllm": options,
        "vllm.inputs": {"tokens_input": lambda ids: {"type": "token", "prompt_token_ids": ids}},
        "vllm.platforms": {"current_platform": SimpleNamespace(device_type="cuda")},
        "vllm.config": {"StructuredOutputsConfig": SimpleNamespace},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(FINAL_ONLY="final"),
            "StructuredOutputsParams": SimpleNamespace,
        },
    }
    for name, values in parts.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
