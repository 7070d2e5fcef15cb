"""What people use instead of gristmill, as contenders of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from udfs.models import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks import Task

_PIPELINE_BATCH = 32


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
    """Hugging Face's pipeline for the task, in batches of 32."""
    from transformers import AutoTokenizer
    from transformers import pipeline as make_pipeline

    kinds = files.config.get("architectures") or [""]
    by_nli = spec.task == "zero-shot-classification" and kinds[0].endswith("ForSequenceClassification")
    as_asked = by_nli or spec.task in ("text-classification", "token-classification")
    name = spec.task if as_asked else "feature-extraction"
    limit = _max_tokens(task)
    tokenizer = AutoTokenizer.from_pretrained(files.transformer, model_max_length=limit, local_files_only=True)
    made = make_pipeline(
        name, model=str(files.transformer), tokenizer=tokenizer, batch_size=_PIPELINE_BATCH, device=_device()
    )
    cut = {"truncation": True, "max_length": limit}
    if name == "feature-extraction":

        def run() -> Any:
            return [made_of.mean(dim=1) for made_of in made(texts, return_tensors=True, tokenize_kwargs=cut)]
    elif spec.task == "token-classification":

        def run() -> Any:
            return made(texts, aggregation_strategy=spec.aggregation_strategy or "simple")
    elif by_nli:

        def run() -> Any:
            return made(texts, candidate_labels=list(spec.labels), multi_label=spec.multi_label)
    else:

        def run() -> Any:
            return made(texts, top_k=None, **cut)

    return [Contender(f"Hugging Face pipeline, batch {_PIPELINE_BATCH}", run, _share_in_batches(lengths))]


def sentence_transformers(
    spec: ScoreSpec,
    files: ModelFiles,
    texts: list[str],
    lengths: np.ndarray,
    *,
    precisions: tuple[str, ...] = ("float32", "bfloat16"),
) -> list[Contender]:
    """What sentence-transformers takes for an embedding job, where it is installed."""
    if spec.task != "feature-extraction" or find_spec("sentence_transformers") is None:
        return []
    import torch
    from sentence_transformers import SentenceTransformer

    share = _share_in_batches(np.sort(lengths)[::-1])
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

        def run(model: Any = model) -> Any:
            return model.encode(texts, show_progress_bar=False, convert_to_tensor=True)

        found.append(Contender(f"SentenceTransformer.encode, {precision}", run, share))
    return found


def _share_in_batches(lengths: np.ndarray) -> float:
    padded = sum(
        int(part.max()) * len(part) for part in np.split(lengths, range(_PIPELINE_BATCH, len(lengths), _PIPELINE_BATCH))
    )
    return int(lengths.sum()) / padded


def _max_tokens(task: Task) -> int:
    return task.tokenizer.max_tokens  # type: ignore[attr-defined]


def _device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
