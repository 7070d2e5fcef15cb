"""Models whose weights are quantized: they are not run, since each kind wants a library of its own."""

from __future__ import annotations

from udfs.errors import ModelError
from udfs.model.files import ModelFiles

_UNNAMED, _MLX = "by an unnamed method", "for MLX"
# AutoGPTQ's and AutoAWQ's files beside a config.json that does not tell.
_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def check_not_quantized(files: ModelFiles, *, may_vllm: bool = False) -> None:
    """Refuse quantized weights.

    Args:
        files: The model.
        may_vllm: The task is one that vLLM does.

    Raises:
        ModelError: They are; with what to do.
    """
    method = find_quantization(files)
    if method is None:
        return
    told = f"model {files.name!r} is quantized ({method}), which gristmill does not run; take the model it was made of"
    if method == _UNNAMED:
        told += ", or, if its weights are plain, take quantization_config out of its config.json"
    if files.base:
        told = (
            f"adapter {files.name!r} changes {files.base.name!r}, which is quantized ({method}); say as `base_model` "
            "the model that it was made of"
        )
    elif may_vllm and method != _MLX:
        told += ", or have it written with by vLLM: `score.engine: vllm`, on nodes that have it"
    raise ModelError(told)


def find_quantization(files: ModelFiles) -> str | None:
    """How a model's weights are quantized, as its files name it; None if they are not."""
    config = files.config
    if isinstance(told := config.get("quantization"), dict) and "bits" in told:
        return _MLX
    nested = [part for part in config.values() if isinstance(part, dict)]
    for part in (config, *nested):
        for key in ("quantization_config", "compression_config"):
            if told := part.get(key):
                return str(told.get("quant_method") or _UNNAMED) if isinstance(told, dict) else str(told)
    if config.get("quantization_config") is not None:  # transformers does not load a model with an empty one
        return _UNNAMED
    return next((kind for name, kind in _OLD_FILES.items() if files.read_json(name)), None)
