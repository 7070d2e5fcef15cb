"""The models of a job whose rows are requests: what each of them can do, and how it is asked."""

from __future__ import annotations

import functools
from typing import Any

from jobs.settings import Settings
from udfs.batch_api.spec import BatchSpec, Served
from udfs.batch_api.writing import RequestWriting
from udfs.errors import ModelError, SpecError, UnsafeModelError
from udfs.model.files import open_model_of, pin
from udfs.model.inputs import check_takes_text
from udfs.model.own_code import check_code_not_needed
from udfs.spec import ScoreSpec
from udfs.tasks.registry import make_spec, make_task

_REQUEST_WINDOW = 2048  # rows: answers are kept in memory until the slowest of a window is there


def serve(settings: Settings, *, deadline: float | None = None) -> BatchSpec:
    """What goes to the executors of a job of requests.

    Raises:
        ModelError, SpecError: A model is not there, is not safe, or can neither write nor embed.
    """
    window_rows = min(settings.batching.window_rows, _REQUEST_WINDOW)
    models = tuple(_serve(name, model, settings, deadline) for name, model in settings.models.items())
    return BatchSpec(settings.dialect(), models, window_rows, deadline)


def list_specs(settings: Settings, *, deadline: float | None = None) -> list[ScoreSpec[Any]]:
    """What a job asks of models that gristmill runs: one spec for each engine."""
    if settings.is_hosted():
        return []
    return serve(settings, deadline=deadline).specs() if settings.models else [settings.spec(deadline=deadline)]


def _serve(name: str, model: str, settings: Settings, deadline: float | None) -> Served:
    base = settings.model_copy(update={"score": settings.score.model_copy(update={"model": model})})
    own = base.spec(deadline=deadline)
    shared = {
        key: getattr(own, key)
        for key in ("max_tokens", "precision", "max_batch_tokens", "batch_timeout_s", "deadline", "dedupe")
    }
    write = make_spec(
        "text-generation",
        model,
        messages="messages",
        options_from="options",
        overflow="fail",
        **shared,
        **{key: getattr(own.options, key) for key in _WRITING},
    )
    embed = make_spec("feature-extraction", model, overflow=own.overflow, **shared)
    found: dict[str, Any] = {"write": None, "embed": None}
    problems = []
    for kind, spec in (("write", write), ("embed", embed)):
        if (problem := _find_problem(kind, spec)) is None:
            found[kind] = pin(spec)
        else:
            problems.append((kind, problem))
    if not any(found.values()):
        raise ModelError("; ".join(dict.fromkeys(problem for _, problem in problems)))
    return Served(name, found["write"], found["embed"], tuple(problems))


_WRITING = (
    *("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "reasoning", "chat_template_kwargs", "engine"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "response_format"),
)


@functools.lru_cache(maxsize=64)
def _problem_of(kind: str, told: str, spec: _Hashed) -> str | None:
    try:
        files = open_model_of(spec.spec)
        check_takes_text(files)
        check_code_not_needed(files)
        task: Any = RequestWriting(spec.spec, files) if kind == "write" else make_task(spec.spec, files)
        if kind == "embed":
            kinds = map(str, files.config.get("architectures") or ())
            if not files.modules and any(each.endswith(("ForCausalLM", "LMHeadModel")) for each in kinds):
                return f"model {files.name!r} writes, and its files tell no way to make a vector of a text"
            task.tokenize([])
    except UnsafeModelError:
        raise
    except (ModelError, SpecError) as error:
        return error.message
    return None


class _Hashed:
    """A spec as a key, whatever it holds."""

    def __init__(self, spec: ScoreSpec[Any]) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return hash(repr(self.spec.for_engine()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and repr(self.spec) == repr(other.spec)


def _find_problem(kind: str, spec: ScoreSpec[Any]) -> str | None:
    return _problem_of(kind, spec.model, _Hashed(spec))
