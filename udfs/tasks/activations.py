"""From a classifier's logits to scores: what transformers makes of a text's, sentence-transformers of a pair's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.tasks.scores import sigmoid, softmax

Activation = Literal["none", "sigmoid", "softmax"]
Activate = Callable[[np.ndarray], np.ndarray]


def _leave(logits: np.ndarray) -> np.ndarray:
    return logits


_BY_NAME: dict[str, Activate] = {"none": _leave, "sigmoid": sigmoid, "softmax": softmax}
# torch's modules by the names that models' files have for them.
_BY_MODULE: dict[str, Activate] = {"Identity": _leave, "Sigmoid": sigmoid, "Softmax": softmax, "Tanh": np.tanh}


def choose_activation(files: ModelFiles, *, labels: int, pairs: bool, asked: Activation | None) -> Activate:
    """What makes scores of (N, L) logits.

    Args:
        files: The model's.
        labels: L.
        pairs: Two texts were read together.
        asked: None takes what the library does that such a model is used with.

    Raises:
        ModelError: The model's files name a function that is none of torch's common ones.
    """
    if asked is not None:
        return _BY_NAME[asked]
    return _of_pairs(files, labels) if pairs else _of_texts(files, labels)


def _of_texts(files: ModelFiles, labels: int) -> Activate:
    """Source: transformers, `TextClassificationPipeline`."""
    kind = files.config.get("problem_type")
    if kind == "regression":
        return _leave
    return sigmoid if kind == "multi_label_classification" or labels == 1 else softmax


def _of_pairs(files: ModelFiles, labels: int) -> Activate:
    """Source: sentence-transformers, `CrossEncoder.get_default_activation_fn`."""
    told = _read_activation(files)
    if told is None:
        return sigmoid if labels == 1 else _leave
    package, _, name = str(told).rpartition(".")
    if name not in _BY_MODULE or not package.startswith("torch."):
        raise ModelError(
            f"model {files.name!r} wants its scores made by {told!r}, which is not run; say score.activation: none, "
            "sigmoid or softmax"
        )
    return _BY_MODULE[name]


def _read_activation(files: ModelFiles) -> Any:
    """What a model's files name, the file of sentence-transformers' own first."""
    config = files.config
    told = (
        read_cross_encoder(files).get("activation_fn"),
        (config.get("sentence_transformers") or {}).get("activation_fn"),
        config.get("sbert_ce_default_activation_function"),
    )
    return next((name for name in told if name is not None), None)


def read_cross_encoder(files: ModelFiles) -> dict[str, Any]:
    """config_sentence_transformers.json of a model that was saved as a `CrossEncoder`; {} of all others."""
    told = files.read_json("config_sentence_transformers.json")
    return told if told.get("model_type") == "CrossEncoder" and (files.root / "modules.json").is_file() else {}
