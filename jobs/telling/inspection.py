"""What a model is, and what it can do here: by its files alone, or by an engine that loads and tries it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.markup import escape

from jobs.preflight import name_ends
from udfs.errors import ModelError, SpecError
from udfs.generation.own_settings import read_obeyed
from udfs.local import LocalEngine
from udfs.model.attention import why_padded
from udfs.model.embedding import Pool, read_embedding
from udfs.model.files import ModelFiles, open_model_of
from udfs.model.inputs import check_takes_text
from udfs.model.limits import NO_LIMIT, position_limit, resolve_max_tokens
from udfs.model.own_code import check_code_not_needed
from udfs.model.precision import DevicePlan, plan_device
from udfs.model.tensors import read_shapes
from udfs.spec import ScoreSpec
from udfs.tasks.registry import KINDS, make_spec, make_task
from udfs.tasks.text_classification import check_head_fits
from udfs.text.chats import has_chat, names_read
from udfs.text.tokenizing import load_backend

_LEAST: dict[str, dict[str, Any]] = {"zero-shot-classification": {"labels": ("this", "that")}}  # that a task must have
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Files that change what becomes of some text, for some task.
_BESIDE = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
    *("generation_config.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
)
_LABELS = 8  # that are shown
_SEQUENCES = 128  # that a decoder writes side by side, at most, on a CPU; twice that on a GPU
_HEADS = ("num_key_value_heads", "num_attention_heads", "n_head", "num_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")


@dataclass(frozen=True)
class Inspection:
    """A model, looked at.

    Args:
        told: What is known of it, by what it is about, in order.
        tasks: Tasks that it can do, and what each still has to be told; "" for nothing.
        refused: Tasks that it cannot do, and why.
    """

    told: dict[str, str]
    tasks: dict[str, str]
    refused: dict[str, str]


def inspect_model(name: str, *, load: bool = False, **options: str | None) -> Inspection:
    """Look at a model without Spark.

    Args:
        name: As `score.model`.
        load: Load it too, as an engine does for the first task that it can do, and try it with texts.
        options: `revision`, `base_model`, `base_revision`, as of a job.

    Raises:
        ModelError: It is not there, unsafe, or of no use for any task; the message says what to do.
    """
    specs = {task: make_spec(task, name, **_LEAST.get(task, {}), **options) for task in KINDS if task != "translation"}
    files = open_model_of(specs["feature-extraction"])
    check_takes_text(files)
    check_code_not_needed(files)
    load_backend(files)
    specs = {task: _fit_answer(files, spec) for task, spec in specs.items()}
    translation = _fit_answer(files, make_spec("translation", name, **options))
    tasks, refused = _find_tasks(files, specs | {"translation": translation})
    if not tasks:
        raise ModelError(f"model {name!r} can do no task: it {'; it '.join(dict.fromkeys(refused.values()))}")
    spec = specs.get(first := next(iter(tasks)), specs["feature-extraction"])
    plan = plan_device(writes=spec.options.writes)
    told = dict(_tell(files, spec, plan, tasks))
    if spec.options.writes:
        read_obeyed(files)
    if load:
        told |= _load(spec) if first in specs else {}
    return Inspection(told, tasks, refused)


def show_inspection(found: Inspection, console: Console) -> None:
    """Print a line for each thing that is known."""
    tasks = ", ".join(f"{task} ({needed})" if needed else task for task, needed in found.tasks.items())
    lines = {"tasks": tasks, **found.told}
    width = max(map(len, lines)) + 2
    for name, told in lines.items():
        console.print(f"[bold]{escape(name):{width}}[/]{escape(told)}", soft_wrap=True, highlight=False)
    for task, reason in found.refused.items():
        console.print(f"[dim]{'not for':{width}}{escape(task)}: {escape(reason)}[/]", soft_wrap=True, highlight=False)


def _fit_answer(files: ModelFiles, spec: ScoreSpec[Any]) -> ScoreSpec[Any]:
    """Of a model that writes, answers that are short enough for it: half of what it has places for, at most."""
    if not spec.options.writes:
        return spec
    most = files.config.get("max_position_embeddings") if files.config.get("is_encoder_decoder") else None
    longest = min(spec.options.max_new_tokens, max(1, (most or position_limit(files)) // 2))
    return replace(spec, options=replace(spec.options, max_new_tokens=longest))


def _find_tasks(files: ModelFiles, specs: dict[str, ScoreSpec[Any]]) -> tuple[dict[str, str], dict[str, str]]:
    """What the model's head is made for comes first: any model embeds."""
    fits, refused = dict[str, str](), dict[str, str]()
    for task in sorted(KINDS, key=lambda task: task in ("feature-extraction", "zero-shot-classification")):
        try:
            make_task(specs[task], files)
            check_head_fits(specs[task], files)
            fits[task] = "needs labels" if task in _LEAST else ""
        except SpecError as error:  # the model can, if it is told more
            fits[task] = f"needs {error.message.partition(' needs ')[2]}" if " needs " in error.message else ""
        except ModelError as error:
            refused[task] = error.message.removeprefix(f"model {files.name!r} ")
    if files.modules or files.is_static:  # it was made to embed
        fits = {task: fits[task] for task in sorted(fits, key=lambda task: task != "feature-extraction")}
    return fits, refused


def _tell(
    files: ModelFiles, spec: ScoreSpec[Any], plan: DevicePlan, tasks: dict[str, str]
) -> Iterator[tuple[str, str]]:
    config = files.config
    text_config = config.get("text_config") or config
    count = _count_parameters(files)
    kind = ", ".join(config.get("architectures") or ()) or "a table of tokens' vectors"
    yield "model", f"{kind} ({config.get('model_type', 'static')}), {_short(count)} parameters{_tell_origin(files)}"
    if broken := "; ".join(_find_broken(files)):
        yield "broken", broken
    if files.names_code:
        yield "code", "its files name Python code; it is not run, since transformers has the architecture"
    if "text-classification" in tasks and (labels := list((config.get("id2label") or {}).values())):
        more = f" and {len(labels) - _LABELS} more" if len(labels) > _LABELS else ""
        yield "labels", ", ".join(map(str, labels[:_LABELS])) + more
    if "feature-extraction" in tasks:
        yield "vectors", _tell_vectors(files)
    yield "longest text", _tell_longest(files, spec)
    if spec.options.writes:
        yield "chat", _tell_chat(files)
        yield "end tokens", ", ".join(name_ends(files)) or "none: answers have full length"
    yield "precision", f"{plan.precision} on {plan.device}: {plan.reason}"
    yield "batches", _tell_batches(files, spec, plan)
    yield "memory", _tell_memory(files, text_config, spec, plan, count)


def _tell_origin(files: ModelFiles) -> str:
    commit = f", commit {files.commit}" if files.commit else ""
    return f"{commit}, a LoRA adapter of {files.base.name}" if files.base else commit


def _tell_vectors(files: ModelFiles) -> str:
    embedding = read_embedding(files)
    steps = ", ".join(
        f"pooled by {' + '.join(step.modes)}" if isinstance(step, Pool) else type(step).__name__
        for step in embedding.steps
    )
    prompts = files.read_json("config_sentence_transformers.json").get("prompts") or {}
    named = [str(name) for name, prompt in prompts.items() if prompt]
    width = f"{embedding.width} numbers" if embedding.width else "of a width that its files do not tell"
    return f"{width}, {steps or 'the mean of their vectors'}" + (f"; prompts: {', '.join(named)}" if named else "")


def _tell_chat(files: ModelFiles) -> str:
    try:
        names_read(files)
        return "a chat template" if has_chat(files) else "no chat template: ask by a prompt"
    except ModelError as error:
        return f"a chat template that cannot be used, ask by a prompt: {error.message}"


def _find_broken(files: ModelFiles) -> Iterator[str]:
    """What is wrong with files that no task of this model may read, or none of those that it is good for."""
    for name in _BESIDE:
        try:
            files.read_json(name)
        except ModelError as error:
            yield error.message


def _tell_longest(files: ModelFiles, spec: ScoreSpec[Any]) -> str:
    limit = position_limit(files)
    most = "max_tokens may be any" if limit >= NO_LIMIT else f"max_tokens may be {limit:,} at most"
    if spec.options.writes:
        return f"{most}, of the prompt and the answer together"
    told = resolve_max_tokens(files, None)
    return f"{'any' if told >= NO_LIMIT else f'{told:,} tokens'}, as its files say; {most}"


def _tell_batches(files: ModelFiles, spec: ScoreSpec[Any], plan: DevicePlan) -> str:
    if spec.options.writes:
        way = "padded micro-batches" if files.config.get("is_encoder_decoder") else "continuous batching, packed"
        return f"{way}; one text at a time where a trial says otherwise, as it loads"
    if files.is_static:
        return "packed: a look-up without a transformer"
    reason = why_padded(files.config, device=plan.device, precision=plan.precision)
    return f"padded, since {reason}" if reason else "packed, if a trial finds texts as they are alone, as it loads"


def _tell_memory(files: ModelFiles, config: dict[str, Any], spec: ScoreSpec[Any], plan: DevicePlan, count: int) -> str:
    weights = count * _BYTES[plan.precision]
    told = f"{_size(weights)} of weights"
    if not spec.options.writes or files.config.get("is_encoder_decoder"):
        return f"{told}, and what micro-batches take, which is measured as it loads"
    if not (token := _bytes_per_token(config) * _BYTES[plan.precision]):
        return told
    many = _SEQUENCES * (2 if plan.device.startswith("cuda") else 1)
    return f"{told}; {_size(token)} of keys and values a token, of at most {many} sequences side by side"


def _bytes_per_token(config: dict[str, Any]) -> int:
    """Numbers of keys and values that a decoder keeps of a token; 0 where its config.json does not tell."""
    layers, heads, width = (_first(config, keys) for keys in (_LAYERS, _HEADS, _WIDTHS))
    all_heads = _first(config, _HEADS[1:])
    head = _first(config, ("head_dim",)) or (width // all_heads if all_heads else 0)
    return 2 * layers * heads * head


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> int:
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 0)


def _count_parameters(files: ModelFiles) -> int:
    shapes = (shape for path in sorted(files.weights.glob("*.safetensors")) for shape in read_shapes(path).values())
    return sum(map(math.prod, shapes))


def _load(spec: ScoreSpec[Any]) -> dict[str, str]:
    """Load and try the model as an engine does, in this process."""
    began = time.monotonic()
    with LocalEngine(spec) as engine:
        seconds, way = time.monotonic() - began, engine.name.rpartition("/")[2]
    budget = "" if spec.options.writes else f", micro-batches of {engine.budget.now:,} tokens"
    return {"loaded": f"for {spec.task} in {seconds:.1f} s: {way}{budget}"}


def _short(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
