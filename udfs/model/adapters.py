"""What a LoRA adapter's files say: which model it changes, and how; they are as untrusted as any model's.

peft reads more of an adapter_config.json than what an adapter is: names of modules to import, quantization, other
models to fetch. Here a few settings that say how tensors are to be merged are taken, and all others must be off.
"""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udfs.errors import ModelError, UnsafeModelError
from udfs.model.json_files import load_object
from udfs.model.tensors import check_whole

ADAPTER, ADAPTER_WEIGHTS, PICKLED_ADAPTER = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # peft puts it before the name of each tensor

# How tensors are merged, with the types that peft takes.
_TAKEN: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "lora_bias": (bool,),
    "bias": (str,),
    "fan_in_fan_out": (bool,),
    "modules_to_save": (list,),
    "trainable_token_indices": (list, dict),
}
# What was done to train it, or is told by the tensors' names, or is nothing that decides an answer.
_NOT_READ = {
    *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "init_lora_weights", "auto_mapping", "runtime_config", "ensure_weight_tying"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "eva_config", "lora_ga_config"),
}
# Ways to begin that take something from the base's weights, which peft does again as it loads.
_FROM_THE_BASE = re.compile(r"pissa(_niter_\d{1,3})?|olora")
_FORGOTTEN = {"gaussian", "orthogonal", "eva", "lora_ga"}  # the tensors take their place
_HEADS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForConditionalGeneration",
    "FEATURE_EXTRACTION": "Model",
}
_STEM = re.compile(r"(\w+?)(For[A-Z]\w*|LMHeadModel|EncoderModel|Model)")
_LABELS = re.compile(r"(.*\.)?(classifier|score|out_proj|out_layer)\.weight")
# A vocabulary that has grown is saved once more, as peft's own parts call it.
_TWIN = re.compile(r"\.(modules_to_save|original_module)\.")
_FIRST = re.compile(r"\.lora_(embedding_)?A\b")
_PLAIN_PATTERN = re.compile(r"[\w.*^$\\|()\[\]-]{1,200}")
_PLAIN = "gristmill takes names of modules with numbers, with `.*` and `(a|b)` in them"
_MOST_STARS, _MOST_RANK = 4, 4096
_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, to be merged into the weights of the model that it names.

    Args:
        base: The model that it changes: a hub id or a directory; None where it names none.
        revision: Of a hub id.
        settings: Of peft's LoraConfig, those that say how tensors are merged.
        shapes: Of its tensors, by their names in the base; no other is read.
        head: What the class of the whole model's name ends with; "" where that is not told.
    """

    base: str | None
    revision: str | None
    settings: dict[str, Any] = field(repr=False, compare=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False, compare=False)
    head: str = ""

    def change_config(self, config: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        """The base's config.json as the whole model's would be.

        Args:
            config: The base's.
            own: The adapter's own config.json, of the whole model; {} for none, as most have.
        """
        changed = config | {key: own[key] for key in ("id2label", "label2id", "problem_type") if key in own}
        named = own.get("architectures") or config.get("architectures") or []
        if self.head.endswith("Classification"):
            labels = next((shape[0] for key, shape in self.shapes.items() if _LABELS.fullmatch(key)), 0)
            if labels and labels != len(changed.get("id2label") or {}):
                changed["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
                changed["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
        return {**changed, "architectures": [self._rename(str(kind)) for kind in named]}

    def _rename(self, kind: str) -> str:
        """A class of the base, with the adapter's head."""
        found = _STEM.fullmatch(kind)
        return found[1] + self.head if found and self.head else kind


def read_adapter(name: str, folder: Path) -> Adapter:
    """Read an adapter's configuration, and the names of its tensors.

    Args:
        name: The model's, as the user gave it.
        folder: Where its adapter_config.json lies.

    Raises:
        ModelError: It is no LoRA, asks for something that is not merged here, or peft is not installed.
        UnsafeModelError: It asks for code of its own.
    """
    told = load_object(folder / ADAPTER)
    if (kind := told.get("peft_type", "LORA")) != "LORA":
        raise ModelError(f"model {name!r} is an adapter of kind {kind}; gristmill merges LoRA alone: merge it by peft")
    _check_mapping(name, told.get("auto_mapping"))
    settings: dict[str, Any] = {"init_lora_weights": _check_beginning(name, told.get("init_lora_weights", True))}
    for key, value in told.items():
        if key in _TAKEN and value is not None:
            if not isinstance(value, _TAKEN[key]):
                raise ModelError(f"model {name!r}: {ADAPTER} has {key} {value!r}, which peft would not have written")
            settings[key] = value
        elif key not in _NOT_READ and key not in _TAKEN and value not in (None, False, [], {}, ""):
            raise ModelError(
                f"model {name!r}: {ADAPTER} asks for {key}, which gristmill does not merge; merge it by peft, "
                "`merge_and_unload`, and save the whole model"
            )
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"model {name!r} is a LoRA adapter, which needs peft: `pip install 'gristmill[lora]'`")
    shapes = _read_shapes(name, folder / ADAPTER_WEIGHTS)
    _check_ranks(name, settings, shapes)
    texts = {key: told.get(key) for key in ("base_model_name_or_path", "revision")}
    base, revision = (value if isinstance(value, str) and value else None for value in texts.values())
    return Adapter(base, revision, settings, shapes, _find_head(told))


def _check_mapping(name: str, mapping: Any) -> None:
    """peft would import the module that this names, for a class that transformers has: it is not even read here."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if library is not None and not (isinstance(library, str) and library.split(".")[0] == "transformers"):
        raise UnsafeModelError(
            f"model {name!r}: {ADAPTER} has an auto_mapping to {library!r}, it asks to run Python code that is no part "
            "of transformers; gristmill never does"
        )


def _check_beginning(name: str, told: Any) -> bool | str:
    """How tensors began, where that has changed the base's weights; False where it does not matter any more."""
    if told is None or isinstance(told, bool) or (isinstance(told, str) and told in _FORGOTTEN):
        return False
    if isinstance(told, str) and _FROM_THE_BASE.fullmatch(told):
        return told
    raise ModelError(
        f"model {name!r}: {ADAPTER} has init_lora_weights {told!r}, which changes the base's weights in a way that "
        "gristmill does not repeat; merge it by peft, `merge_and_unload`, and save the whole model"
    )


def _check_ranks(name: str, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Ranks are those that the tensors have: peft makes tensors of what is told, however large, before it reads them.

    Patterns are regular expressions: those that could match for hours are not taken.
    """
    patterns = {key: settings.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    for key, pattern in patterns.items():
        for part, value in pattern.items():
            if not _is_plain(part) or not _is_number(value):
                raise ModelError(f"model {name!r}: {ADAPTER} has the {key} {{{part!r:.100}: {value!r:.100}}}; {_PLAIN}")
    ranks = {shape[0] for key, shape in shapes.items() if _FIRST.search(key) and shape}
    told = {settings.get("r", 8), *patterns["rank_pattern"].values()}
    fits = told <= ranks if not patterns["rank_pattern"] else all(type(r) is int and 0 < r <= _MOST_RANK for r in told)
    if ranks and (not fits or any(isinstance(rank, bool) for rank in told)):
        raise ModelError(
            f"model {name!r}: {ADAPTER} tells of rank {', '.join(map(str, sorted(told)))}, and its tensors have "
            f"{', '.join(map(str, sorted(ranks)))}"
        )


def _is_plain(pattern: str) -> bool:
    """A regular expression that is soon done: a few stars, none of them of a group."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    few = pattern.count("*") <= _MOST_STARS and pattern.count("(") <= _MOST_STARS
    return few and ")*" not in pattern and _PLAIN_PATTERN.fullmatch(pattern) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _find_head(told: dict[str, Any]) -> str:
    mapping = told.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    found = _STEM.fullmatch(named) if isinstance(named, str) else None
    return _HEADS.get(str(told.get("task_type")), found[2] if found else "")


def _read_shapes(name: str, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's tensors, by their names without what peft puts before them."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_BYTES:
                raise ValueError(f"its header is said to have {length} bytes")
            header = json.loads(file.read(length))
        told = {key: tuple(tensor["shape"]) for key, tensor in header.items() if key != "__metadata__"}
    except (OSError, ValueError, struct.error, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"model {name!r}: {path.name} is not safetensors: {error}") from error
    check_whole(path)
    if strange := [key for key in told if not key.startswith(PREFIX)]:
        raise ModelError(f"model {name!r}: {path.name} has a tensor {strange[0]!r}, whose name is none of peft's")
    return {key.removeprefix(PREFIX): shape for key, shape in told.items() if not _TWIN.search(key)}
