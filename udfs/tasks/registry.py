"""All tasks by their names: the one list of them, and specs made of options by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from udfs.errors import SpecError
from udfs.model.files import ModelFiles
from udfs.model.quantized import check_not_quantized
from udfs.spec import Options, ScoreSpec, freeze, thaw
from udfs.tasks.feature_extraction import FeatureExtraction, FeatureExtractionOptions
from udfs.tasks.summarization import Summarization, SummarizationOptions
from udfs.tasks.task import Task
from udfs.tasks.text_classification import TextClassification, TextClassificationOptions
from udfs.tasks.text_generation import TextGeneration, TextGenerationOptions
from udfs.tasks.token_classification import TokenClassification, TokenClassificationOptions
from udfs.tasks.translation import Translation, TranslationOptions
from udfs.tasks.zero_shot_classification import ZeroShotOptions, make_zero_shot

_TOLD_WHOLE = 3  # a group of so few options is named as a whole where one of them is strange to a task


@dataclass(frozen=True)
class Kind:
    """A task: what it takes, and what makes its worker half for a model."""

    options: type[Options]
    make: Callable[[ScoreSpec[Any], ModelFiles], Task]


KINDS: dict[str, Kind] = {
    kind.options.task: kind
    for kind in (
        Kind(FeatureExtractionOptions, FeatureExtraction),
        Kind(TextClassificationOptions, TextClassification),
        Kind(ZeroShotOptions, make_zero_shot),
        Kind(TokenClassificationOptions, TokenClassification),
        Kind(TextGenerationOptions, TextGeneration),
        Kind(SummarizationOptions, Summarization),
        Kind(TranslationOptions, Translation),
    )
}
SHARED: dict[str, Field[Any]] = {f.name: f for f in fields(ScoreSpec) if f.name not in ("options", "model")}


def make_task(spec: ScoreSpec[Any], files: ModelFiles) -> Task:
    """The task that a spec names, for its model.

    Raises:
        ModelError: The model is of another kind than the task needs, or quantized, and vLLM was not asked for.
    """
    decodes = spec.options.writes and not files.config.get("is_encoder_decoder")
    if not decodes or getattr(spec.options, "engine", None) != "vllm":
        check_not_quantized(files, may_vllm=decodes)
    return KINDS[spec.task].make(spec, files)


def make_spec(task: str, model: str, **values: Any) -> ScoreSpec[Any]:
    """A spec of options by their names, the shared ones and the task's own alike.

    Options of other tasks may be given if they have their defaults: a job's settings name all of them.

    Raises:
        SpecError: There is no such task or option, one belongs to other tasks, or they do not fit together.
    """
    if task not in KINDS:
        raise SpecError(f"task is {task!r}; choose one of {', '.join(KINDS)}")
    kind = KINDS[task].options
    own = {f.name for f in fields(kind)}
    given = {name: freeze(value) for name, value in values.items()}
    problems = list(_find_strange({n: v for n, v in given.items() if n not in own and n not in SHARED}, task))
    try:
        for told in fields(kind):
            if told.name in given and (check := told.metadata["check"]):
                check(given[told.name])
        options = kind(**{name: value for name, value in given.items() if name in own})
        shared = {name: value for name, value in given.items() if name in SHARED}
        spec = ScoreSpec(options=options, model=model, **shared)
    except SpecError as error:
        problems.append(error.message)
    except ValueError as error:  # of a check
        problems.append(str(error))
    if problems:
        raise SpecError("; ".join(problems))
    return spec


def read_spec(values: Mapping[str, Any]) -> ScoreSpec[Any]:
    """The spec that `for_engine` told as JSON."""
    return make_spec(**values)


def task_options() -> dict[str, tuple[Field[Any], tuple[str, ...]]]:
    """Every option that is not shared, by its name: its field, and the tasks that take it."""
    found: dict[str, tuple[Field[Any], tuple[str, ...]]] = {}
    for task, kind in KINDS.items():
        for told in fields(kind.options):
            _, owners = found.get(told.name, (told, ()))
            found[told.name] = told, (*owners, task)
    return found


def option_defaults() -> dict[str, Any]:
    """The default of every option, shared or a task's, ready for JSON."""
    own = {name: option for name, (option, _) in task_options().items()}
    return {name: thaw(option.default) for name, option in {**SHARED, **own}.items()}


def _find_strange(values: Mapping[str, Any], task: str) -> Iterator[str]:
    """Options of other tasks that have been given a value."""
    known = task_options()
    if unknown := [name for name in values if name not in known]:
        yield f"there is no option {', '.join(unknown)}"
    strange = [name for name, value in values.items() if name in known and value != known[name][0].default]
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in strange:
        groups.setdefault(known[name][1], []).append(name)
    for owners, names in groups.items():
        group = [name for name, (_, its) in known.items() if its == owners]
        if len(group) <= _TOLD_WHOLE:
            told = " and ".join([", ".join(group[:-1]), group[-1]] if len(group) > 1 else group)
            yield f"{told} {'belong' if len(group) > 1 else 'belongs'} to {' and '.join(owners)}, not to {task}"
        else:
            yield f"{', '.join(names)} belong to {', '.join(owners)}, not to {task}"
