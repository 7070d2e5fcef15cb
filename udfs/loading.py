"""Load a checked model's weights onto a device."""

from __future__ import annotations

import os
from typing import Any

from udfs.errors import ModelError
from udfs.models import ModelFiles
from udfs.tokenizing import resolve_max_tokens

_PLAIN_ATTENTION_TOKENS = 512


def load_transformer(auto_class: str, files: ModelFiles, *, device: str, precision: str) -> Any:
    """Load safetensors from the checked copy, without a network and without code of the model's own.

    Args:
        auto_class: Name of transformers' class, `AutoModel` or `AutoModelFor…`.
        files: The checked model.
        device: torch's name.
        precision: Floating-point type of the weights.

    Returns:
        The module in evaluation mode.

    Raises:
        ModelError: transformers does not know the architecture, or the files lack weights that it needs: it would
            fill them with random numbers.
    """
    quiet_transformers()
    import torch
    import transformers
    from safetensors import SafetensorError

    options: dict[str, Any] = {
        "dtype": getattr(torch, precision),
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "output_loading_info": True,
    }
    loader = getattr(transformers, auto_class)
    try:
        model, info = _load_with_attention(loader, files, choose_attention(files, device), options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {files.name!r} does not load as {auto_class}: {_first_line(error)}") from error
    missing = [key for key in sorted(info["missing_keys"]) if not key.startswith("pooler.")]
    if missing:
        raise ModelError(
            f"model {files.name!r} lacks {len(missing)} of the weights of {type(model).__name__} ({missing[0]}, …); "
            "it was saved for another task"
        )
    if hasattr(model, "pooler"):
        model.pooler = None  # its output is not used, and it may have had no weights
    return model.eval().requires_grad_(False).to(device)


def choose_attention(files: ModelFiles, device: str) -> str:
    """The fastest attention: fused, but on a CPU with short items plain matrix products.

    all-MiniLM-L6-v2 in bfloat16 on two cores scored 13 % more rows/s with plain products, of short and of mixed
    texts; their memory grows with the square of the length, so they are not for long ones.
    """
    return "eager" if device == "cpu" and resolve_max_tokens(files, None) <= _PLAIN_ATTENTION_TOKENS else "sdpa"


def _load_with_attention(loader: Any, files: ModelFiles, attention: str, options: dict[str, Any]) -> Any:
    try:
        return loader.from_pretrained(files.transformer, attn_implementation=attention, **options)
    except ValueError as error:
        if attention == "eager" or ("attention" not in str(error) and "sdpa" not in str(error)):
            raise
        return loader.from_pretrained(files.transformer, attn_implementation="eager", **options)


def quiet_transformers() -> None:
    """Set what must be set before transformers is imported, and keep its bars off the job's terminal."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["USE_HUB_KERNELS"] = "0"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
