"""A LoRA adapter merged into its base, as that is loaded; by peft, which is told which tensors are there."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from udfs.errors import ModelError, first_line
from udfs.model.adapters import ADAPTER_WEIGHTS, PREFIX, Adapter
from udfs.model.files import ModelFiles
from udfs.model.memory import is_out_of_memory

_OF_LORA = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")


def held_by_adapter(model: Any, files: ModelFiles) -> frozenset[str]:
    """Weights of a model that its adapter holds as a whole, such as a head: the base need not have them."""
    if files.adapter is None:
        return frozenset()
    return frozenset(name for name in _fit_names(model, files.adapter.shapes, files).values() if not _target_of(name))


def merge_adapter(model: Any, files: ModelFiles, adapter: Adapter) -> Any:
    """Add an adapter's products to the weights of its base, and put what it holds as a whole in its place.

    Args:
        model: The base, loaded for the task, in the host's memory; it is changed.
        files: The adapter's.
        adapter: How its tensors are merged.

    Returns:
        The model, without a trace of peft.

    Raises:
        ModelError: The adapter changes other modules than this model has, or does not fit them.
    """
    from safetensors.torch import load_file

    found = load_file(files.transformer / ADAPTER_WEIGHTS)
    names = _fit_names(model, adapter.shapes, files)
    tensors = {fitted: found[PREFIX + name] for name, fitted in names.items()}
    targets = sorted({target for name in tensors if (target := _target_of(name))})
    try:
        _make_room(model, tensors)
        _part_shared(model, targets)
        with warnings.catch_warnings(action="ignore"):
            return _merge(model, adapter.settings, targets, tensors)
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, re.error) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"adapter {files.name!r} does not merge into its base: {first_line(error)}") from error


def _merge(model: Any, settings: Mapping[str, Any], targets: list[str], tensors: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(target_modules=targets, inference_mode=True, **settings)
    wrapped = get_peft_model(model, config)
    loaded = set_peft_model_state_dict(wrapped, {PREFIX + name: tensor for name, tensor in tensors.items()})
    lacking = [key for key in loaded.missing_keys if ".lora_" in key or ".modules_to_save." in key]
    if lacking or loaded.unexpected_keys:
        told = f"lacks {lacking[0]}" if lacking else f"has {loaded.unexpected_keys[0]}, which no part of the base takes"
        raise ValueError(f"it {told}")
    return wrapped.merge_and_unload(safe_merge=True)


def _fit_names(model: Any, names: Iterable[str], files: ModelFiles) -> dict[str, str]:
    """What an adapter's tensors are called in the model that a task loads.

    An adapter that was trained below a head names the base model in it; where the task loads that alone, the names lose
    it, and what belongs to the head is left out, as transformers does with whole models.
    """
    names = list(names)
    modules = {name for name, _ in model.named_modules()}
    targets = {name: target for name in names if (target := _target_of(name))}
    before = f"{model.base_model_prefix}."
    if before != "." and model.base_model is model:
        below = {name: name.removeprefix(before) for name in names if name.startswith(before)}
        if any(target not in modules for target in targets.values()) and below:
            names, targets = list(below), {name: _target_of(below[name]) for name in below if name in targets}
            fitted = below
        else:
            fitted = {name: name for name in names}
    else:
        fitted = {name: name for name in names}
    if not targets or (strange := sorted({target for target in targets.values() if target not in modules})):
        told = f"changes {strange[0]}, which its base has not" if targets else "changes nothing in its base"
        raise ModelError(
            f"adapter {files.name!r} {told} as {type(model).__name__}; it was trained for another model or task"
        )
    return fitted


def _target_of(name: str) -> str:
    """The module that a tensor of LoRA's changes; "" of other tensors."""
    return next((name[: name.index(mark)] for mark in _OF_LORA if mark in name), "")


def _make_room(model: Any, tensors: Mapping[str, Any]) -> None:
    """A vocabulary as large as the adapter's, which may have tokens of its own."""
    vocabulary = model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is vocabulary), None)
    held = tensors.get(f"{name}.weight")
    if held is not None and len(held) != len(vocabulary.weight):
        model.resize_token_embeddings(len(held), mean_resizing=False)


def _part_shared(model: Any, targets: Iterable[str]) -> None:
    """Give a module that is changed a weight of its own, where it shares one: the other's must stay as it is."""
    from torch.nn import Parameter

    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), set()).add(id(module))
    for target in targets:
        module = model.get_submodule(target)
        weight = getattr(module, "weight", None)
        if weight is not None and len(owners.get(id(weight), ())) > 1:
            module.weight = Parameter(weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = False
