"""What people use instead of gristmill, as contenders of a benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from udfs.model.files import ModelFiles
from udfs.model.loading import masks_as_usual
from udfs.spec import ScoreSpec
from udfs.tasks.task import Task

_BATCH = 32  # the default of sentence-transformers too
_GPU_BATCHES = (32, 128, 512)
_TRIED_TEXTS = 2048


@dataclass(frozen=True)
class Contender:
    """One way to score the texts.

    Args:
        name: Shown in the table.
        run: Scores all texts once.
        real_share: Share of real tokens among those that go through the model.
        threads: CPU threads that torch uses in this process meanwhile; None takes all cores.
    """

    name: str
    run: Callable[[], Any]
    real_share: float
    threads: int | None = None


def pipeline(spec: ScoreSpec, files: ModelFiles, task: Task, texts: list[str], lengths: np.ndarray) -> list[Contender]:
    """Hugging Face's pipeline for the task, in batches of 32; none for a static model, which it does not know."""
    if files.is_static:
        return []
    from transformers import AutoTokenizer
    from transformers import pipeline as make_pipeline

    kinds = files.config.get("architectures") or [""]
    by_nli = spec.task == "zero-shot-classification" and kinds[0].endswith("ForSequenceClassification")
    as_asked = by_nli or spec.task in ("text-classification", "token-classification")
    name = spec.task if as_asked else "feature-extraction"
    limit = _max_tokens(task)
    tokenizer = AutoTokenizer.from_pretrained(files.transformer, model_max_length=limit, local_files_only=True)
    made = make_pipeline(name, model=str(files.transformer), tokenizer=tokenizer, batch_size=_BATCH, device=_device())
    cut = {"truncation": True, "max_length": limit}
    if name == "feature-extraction":

        def run() -> Any:
            return [made_of.mean(dim=1) for made_of in made(texts, return_tensors=True, tokenize_kwargs=cut)]
    elif spec.task == "token-classification":

        def run() -> Any:
            return made(texts, aggregation_strategy=spec.options.aggregation_strategy or "simple")
    elif by_nli:

        def run() -> Any:
            return made(texts, candidate_labels=list(spec.options.labels), multi_label=spec.options.multi_label)
    else:

        def run() -> Any:
            return made(texts, top_k=None, **cut)

    return [Contender(f"Hugging Face pipeline, batch {_BATCH}", masks_as_usual()(run), _share_in_batches(lengths))]


def sentence_transformers(
    spec: ScoreSpec,
    files: ModelFiles,
    texts: list[str],
    lengths: np.ndarray,
    *,
    precisions: tuple[str, ...] = ("float32", "bfloat16"),
) -> list[Contender]:
    """What sentence-transformers takes for an embedding job, where it is installed.

    On a CPU it has batches of 32, its default; on a GPU those of `_GPU_BATCHES` that are fastest for some of the texts.
    """
    if spec.task != "feature-extraction" or find_spec("sentence_transformers") is None:
        return []
    import torch
    from sentence_transformers import SentenceTransformer

    found = []
    for precision in precisions:
        model = SentenceTransformer(
            str(files.root),
            device=_device(),
            model_kwargs={"dtype": getattr(torch, precision)},
            local_files_only=True,
        )
        if spec.max_tokens:
            model.max_seq_length = spec.max_tokens

        @masks_as_usual()
        def encode(texts: list[str], batch: int, model: Any = model) -> Any:
            return model.encode(texts, batch_size=batch, show_progress_bar=False, convert_to_tensor=True).cpu()

        batch = _choose_batch(encode, texts[:_TRIED_TEXTS]) if _device() != "cpu" else _BATCH
        share = _share_in_batches(np.sort(lengths)[::-1], batch)
        found.append(Contender(f"SentenceTransformer.encode, {precision}", partial(encode, texts, batch), share))
    return found


def _choose_batch(encode: Callable[[list[str], int], Any], texts: list[str]) -> int:
    """The batch size that is fastest of those that fit into memory; the first call of each is not counted."""
    import torch

    seconds = {}
    for batch in _GPU_BATCHES:
        with suppress(torch.OutOfMemoryError):
            encode(texts[:batch], batch)
            began = time.perf_counter()
            encode(texts, batch)
            seconds[batch] = time.perf_counter() - began
    return min(seconds, key=seconds.__getitem__, default=_BATCH)


def _share_in_batches(lengths: np.ndarray, batch: int = _BATCH) -> float:
    padded = sum(int(part.max()) * len(part) for part in np.split(lengths, range(batch, len(lengths), batch)))
    return int(lengths.sum()) / padded


def _max_tokens(task: Task) -> int:
    return task.tokenizer.max_tokens  # type: ignore[attr-defined]


def _device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
