"""From the states of tokens to one vector an item, as a model's sentence-transformers files ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.model.limits import read_sentence_config

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
