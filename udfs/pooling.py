"""From the states of tokens to one vector an item, as a model's sentence-transformers files ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from udfs.attention import Layout, max_by_sequence, mean_by_sequence
from udfs.errors import ModelError
from udfs.limits import read_sentence_config
from udfs.models import ModelFiles

if TYPE_CHECKING:
    from torch import Tensor

    from udfs.engine.batch import Batch

_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_KNOWN = ("mean", "cls", "max", "lasttoken")


@dataclass(frozen=True)
class Pooling:
    """How a sentence-embedding model makes a vector of token states.

    Args:
        mode: `mean`, `cls`, `max` or `lasttoken`.
        normalize: Divide the vector by its L2 norm.
        lowercase: Texts are lower-cased before they are tokenized.
        prompt: What is put before each text; "" for most models.
    """

    mode: str = "mean"
    normalize: bool = False
    lowercase: bool = False
    prompt: str = ""


def read_pooling(files: ModelFiles) -> Pooling:
    """Read pooling and normalisation from modules.json and what it names; plain mean without such files.

    Raises:
        ModelError: A module or a pooling mode that gristmill does not know: a wrong vector would be worse than none.

    Source: sentence-transformers, `SentenceTransformer` and its modules.
    """
    mode, normalize = "mean", False
    for kind, folder in files.modules:
        if kind == "Pooling":
            mode = _read_mode(files, files.read_json(str(folder.relative_to(files.root) / "config.json")))
        elif kind == "Normalize":
            normalize = True
        else:
            raise ModelError(f"model {files.name!r} has a {kind} module; gristmill knows Pooling and Normalize")
    prompts = files.read_json("config_sentence_transformers.json")
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    lowercase = bool(read_sentence_config(files).get("do_lower_case"))
    return Pooling(mode, normalize, lowercase, prompt)


def _read_mode(files: ModelFiles, config: dict[str, Any]) -> str:
    asked = config.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [asked] if isinstance(asked, str) else list(asked)
    if len(modes) != 1 or modes[0] not in _KNOWN:
        raise ModelError(f"model {files.name!r} pools by {' + '.join(modes)}; gristmill knows {', '.join(_KNOWN)}")
    if config.get("include_prompt") is False:
        raise ModelError(f"model {files.name!r} leaves the prompt out of its pooling, which gristmill cannot do")
    return modes[0]


def pool(hidden: Tensor, batch: Batch, *, pooling: Pooling) -> Tensor:
    """Make one vector of each item's token states.

    Args:
        hidden: States of the last layer: (B, S, H) of a padded micro-batch, (1, T, H) of a packed one.
        batch: The micro-batch, which knows where its items lie.
        pooling: The model's own.

    Returns:
        (B, H) float32.

    Source: sentence-transformers, `Pooling` and `Normalize`.
    """
    import torch

    from udfs.engine.batch import Packed

    if isinstance(batch, Packed):
        vectors = _pool_packed(hidden[0], batch.layout, pooling.mode)
    else:
        vectors = _pool_padded(hidden, batch.real, pooling.mode)
    return torch.nn.functional.normalize(vectors, dim=1) if pooling.normalize else vectors


def _pool_packed(states: Tensor, layout: Layout, mode: str) -> Tensor:
    match mode:
        case "cls":
            return states[layout.starts].float()
        case "lasttoken":
            return states[layout.cu_seqlens[1:] - 1].float()
        case "max":
            return max_by_sequence(states, layout)
    return mean_by_sequence(states, layout)


def _pool_padded(hidden: Tensor, real: Tensor | None, mode: str) -> Tensor:
    import torch

    if mode == "cls":
        return hidden[:, 0].float()
    if mode == "lasttoken":
        last = -1 if real is None else real.sum(dim=1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    if mode == "max":
        held = hidden if real is None else hidden.masked_fill(~real.unsqueeze(-1), float("-inf"))
        return held.amax(dim=1).float()
    if real is None:
        return hidden.float().mean(dim=1)
    weights = real.float()
    return torch.einsum("bsh,bs->bh", hidden.float(), weights) / weights.sum(dim=1, keepdim=True)
