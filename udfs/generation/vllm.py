"""vLLM in the place of our own decoder: the same items, lanes and answers, written by its engine."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from udfs.errors import ModelError
from udfs.executor import available_memory
from udfs.generation.ends import find_ends
from udfs.generation.sequences import Sequence, Way, prompt_seed
from udfs.model.files import ModelFiles
from udfs.model.precision import DevicePlan
from udfs.spec import ScoreSpec
from udfs.tasks.row_options import read_differing
from udfs.tasks.writing_options import Form, WritingOptions, resolve_whole_tokens
from udfs.text.schema_parts import hold_schema
from udfs.wire.written import LENGTH, STOP

_SEQUENCES = 256
_CHOICES = 1_000  # llguidance takes 2,000 in one rule
_CPU_STEP_TOKENS = 2048
_CUDA_MEMORY_SHARE, _CPU_MEMORY_SHARE = 0.9, 0.4  # of what is free
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # what it runs dies with the engine's process, and is told by its journal
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class EngineBrokenError(RuntimeError):
    """vLLM's step has raised; it promises nothing about what comes after."""


def takes_vllm(options: WritingOptions, files: ModelFiles, plan: DevicePlan) -> bool:
    """Whether vLLM is to write; `auto` takes it wherever it can.

    Raises:
        ModelError: It was asked for, and cannot.
    """
    if options.engine == "transformers" or files.config.get("is_encoder_decoder"):
        return False
    if options.engine == "auto" and not plan.device.startswith("cuda"):
        return False
    problem = "it does not merge adapters" if files.adapter else _find_problem(options, plan)
    if problem and options.engine == "vllm":
        raise ModelError(f"engine is 'vllm', but {problem}; `engine: auto` does without")
    return problem is None


def _find_problem(options: WritingOptions, plan: DevicePlan) -> str | None:
    """Why vLLM cannot write here: choices are too many for its grammars, or its build is for another device."""
    if len(options.form.choices) > _CHOICES:
        return f"there are {len(options.form.choices)} choices, and it takes {_CHOICES}"
    if options.form and options.reasoning:
        return "it holds what a model thinks to the schema or choices too"
    if importlib.util.find_spec("vllm") is None:
        return "it is not installed: `pip install 'gristmill[vllm]'` on every node"
    os.environ.update(_ENVIRONMENT)
    try:
        from vllm.platforms import current_platform
    except Exception as error:  # noqa: BLE001 - a library that it misses, of whatever kind
        return f"it does not start: {error}"
    kind = str(current_platform.device_type)
    if not plan.device.startswith(kind or "none"):
        return f"the device is {plan.device}, and the vLLM that is installed runs on {kind or 'none'}"
    return None


class VllmDecoder:
    """The sequences that vLLM is writing; to a lane what `udfs.generation.decoding.Decoder` is.

    Args:
        engine: vLLM's `LLMEngine`.
        sampling: How tokens are picked.
        max_model_len: Longest prompt and answer together.
        max_sequences: So many at once.
    """

    step_tokens, wrote, read = 1, 0, 0  # it cuts its steps by itself

    def __init__(self, engine: Any, sampling: Sampling, *, max_model_len: int, max_sequences: int) -> None:
        self.max_sequences = max_sequences
        self._engine, self._sampling, self._max_model_len = engine, sampling, max_model_len
        self._numbers = itertools.count()
        self._active: dict[str, Sequence] = {}
        self._refused: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._active) + len(self._refused)

    @property
    def sequences(self) -> list[Sequence]:
        """Those that run, in the order in which they began, then those that vLLM refused."""
        return [*self._active.values(), *self._refused]

    def bound(self, *, sequences: int, step_tokens: int) -> None:
        """From now on so many sequences at once."""
        self.max_sequences = sequences

    def is_hungry(self) -> bool:
        """There is room for another prompt."""
        return len(self) < self.max_sequences

    def fits(self, tokens: int, told: str | None = None) -> bool:
        """A prompt of so many tokens could be run at all, with an item's own options."""
        return tokens + self._sampling.way_of(told).options.max_new_tokens <= self._max_model_len

    def add(self, owner: Any, prompt: np.ndarray, told: str | None = None) -> bool:
        """Begin a sequence, with an item's own options; one that vLLM refuses ends with the next step."""
        from vllm.inputs import tokens_input

        way = self._sampling.way_of(told)
        sequence, number = Sequence(owner, prompt, way), str(next(self._numbers))
        try:
            self._engine.add_request(number, tokens_input(prompt.tolist()), self._sampling.of(prompt, way))
        except Exception as error:  # noqa: BLE001 - whatever vLLM has against a prompt is that prompt's fate
            sequence.error = error
            self._refused.append(sequence)
            return True
        self._active[number] = sequence
        return True

    def drop(self, sequences: list[Sequence]) -> None:
        """Forget some sequences, whatever has become of them."""
        gone = set(map(id, sequences))
        numbers = [number for number, sequence in self._active.items() if id(sequence) in gone]
        if numbers:
            self._engine.abort_request(numbers)
        self._active = {number: s for number, s in self._active.items() if id(s) not in gone}
        self._refused = [sequence for sequence in self._refused if id(sequence) not in gone]

    def step(self) -> list[Sequence]:
        """Have vLLM run its model once; returns the sequences that have ended, which are forgotten.

        Raises:
            EngineBrokenError: vLLM has raised.
        """
        over, self._refused = self._refused, []
        if not self._active:
            return over
        try:
            outputs = self._engine.step()
        except Exception as error:
            raise EngineBrokenError(f"vLLM: {type(error).__name__}: {error}") from error
        ended = [output for output in outputs if output.finished and output.request_id in self._active]
        return over + [self._end(self._active.pop(output.request_id), output) for output in ended]

    def _end(self, sequence: Sequence, output: Any) -> Sequence:
        (answer,) = output.outputs
        ids = list(answer.token_ids)
        sequence.ids = ids[:-1] if ids and ids[-1] in self._sampling.ends else ids
        sequence.logprobs = _read_logprobs(answer, ids, sequence.way.options)
        sequence.cached_tokens = output.num_cached_tokens or 0
        sequence.finish = LENGTH if answer.finish_reason == "length" else STOP
        if answer.finish_reason not in ("stop", "length"):
            sequence.error = RuntimeError(f"vLLM ended a text with {answer.finish_reason!r}")
        return sequence


def _read_logprobs(answer: Any, ids: list[int], options: WritingOptions) -> list[tuple[float, list[int], list[float]]]:
    """How likely each token was, as vLLM tells it: by token, each with its rank."""
    if not options.logprobs:
        return []
    told = []
    for token, places in zip(ids, answer.logprobs or [], strict=False):
        ranked = sorted(((one.rank or 0, which, one.logprob) for which, one in places.items()))
        tops = [(which, value) for rank, which, value in ranked if rank <= options.top_logprobs]
        told.append((places[token].logprob, [which for which, _ in tops], [value for _, value in tops]))
    return told


@dataclass(frozen=True)
class Sampling:
    """How vLLM picks tokens.

    Args:
        options: What was asked for.
        ends: Token ids that end an answer.
        penalty: The model's own repetition penalty; 1 for none.
    """

    options: WritingOptions
    ends: frozenset[int]
    penalty: float = 1.0

    @property
    def needs_tokenizer(self) -> bool:
        return bool(self.options.stop or self.options.form or self.options.options_from)

    def way_of(self, told: str | None) -> Way:
        """How an item is answered, by its own options."""
        options, index = read_differing(self.options, told)
        return Way(options, index)

    def of(self, prompt: np.ndarray, way: Way | None = None) -> Any:
        """vLLM's parameters for a prompt; what is drawn depends on it and the seed alone."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        way = way or Way(self.options)
        options = way.options
        more: dict[str, Any] = {}
        if options.logprobs:
            more["logprobs"] = options.top_logprobs
        if options.logit_bias:
            more["logit_bias"] = {int(token): bias for token, bias in options.logit_bias.items()}
        for name in ("presence_penalty", "frequency_penalty", "min_tokens"):
            if getattr(options, name):
                more[name] = getattr(options, name)
        return SamplingParams(
            max_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=prompt_seed(prompt, options.seed, way.index) if options.temperature else None,
            repetition_penalty=self.penalty,
            stop=list(options.stop),
            stop_token_ids=sorted(self.ends),
            detokenize=bool(options.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=self._structured(options.form),
            **more,
        )

    def _structured(self, form: Form) -> Any:
        from vllm.sampling_params import StructuredOutputsParams

        if form.json_schema:
            return StructuredOutputsParams(json=hold_schema(form.json_schema).schema)
        return StructuredOutputsParams(choice=list(form.choices)) if form.choices else None


def load_vllm(spec: ScoreSpec[WritingOptions], files: ModelFiles, plan: DevicePlan, *, cores: int = 1) -> VllmDecoder:
    """Have vLLM load a checked model: safetensors alone, no code of the model's own, no word to anybody.

    Args:
        spec: Names the task and how tokens are picked.
        files: The model.
        plan: The device and the precision.
        cores: CPU threads of each step, on a CPU; it wants as many in the lane that steps.

    Raises:
        ModelError: vLLM does not load it, or does not take how tokens are to be picked.
    """
    os.environ.update(_ENVIRONMENT)
    from vllm import EngineArgs, LLMEngine
    from vllm.config import StructuredOutputsConfig

    sampling = Sampling(spec.options, find_ends(files), find_own_penalty(files))
    max_model_len = resolve_whole_tokens(files, spec)
    limits: dict[str, Any] = {"max_num_batched_tokens": spec.max_batch_tokens} if spec.max_batch_tokens else {}
    if (
        spec.options.temperature or spec.options.options_from
    ) and plan.device == "cpu":  # there it cannot take back what it drew after a piece of a prompt
        whole = max(max_model_len, spec.max_batch_tokens or _CPU_STEP_TOKENS)
        limits = {"enable_chunked_prefill": False, "max_num_batched_tokens": whole}
    sequences = min(_SEQUENCES, spec.max_batch_tokens or _SEQUENCES)
    try:
        sampling.of(np.zeros(1, dtype=np.int32))
        with _own_threads(cores if plan.device == "cpu" else None):
            engine = LLMEngine.from_engine_args(
                EngineArgs(
                    model=str(files.transformer),
                    load_format="safetensors",
                    trust_remote_code=False,
                    skip_tokenizer_init=not sampling.needs_tokenizer,
                    generation_config="vllm",  # not the model's own
                    dtype=plan.precision,
                    max_model_len=max_model_len,
                    max_num_seqs=sequences,
                    enable_prefix_caching=True,
                    structured_outputs_config=StructuredOutputsConfig(backend="guidance", disable_any_whitespace=True),
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    **_memory_options(plan),
                    **limits,
                )
            )
    except Exception as error:  # vLLM raises whatever its libraries do
        told = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"model {files.name!r} does not load in vLLM: {told}; try `engine: transformers`") from error
    return VllmDecoder(engine, sampling, max_model_len=max_model_len, max_sequences=sequences)


@contextmanager
def _own_threads(count: int | None) -> Iterator[None]:
    """So many CPU threads while vLLM loads, which forbids to set them: a lane has to, for itself. None lets it be."""
    import torch

    allowed = torch.set_num_threads
    if count:
        allowed(count)
    try:
        yield
    finally:
        torch.set_num_threads = allowed


def find_own_penalty(files: ModelFiles) -> float:
    """A model's own repetition penalty, by its files; 1 for none."""
    return float((files.read_json("generation_config.json") or files.config).get("repetition_penalty") or 1.0)


def _memory_options(plan: DevicePlan) -> dict[str, Any]:
    """How much memory vLLM may take: of a GPU for all it does, of the host for keys and values."""
    import torch

    if plan.device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info()
        return {"gpu_memory_utilization": _CUDA_MEMORY_SHARE * free / total}
    free = available_memory()
    return {"kv_cache_memory_bytes": int(_CPU_MEMORY_SHARE * free)}
