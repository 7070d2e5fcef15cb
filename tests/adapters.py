"""Tiny random LoRA adapters in directories, as peft saves them, and what transformers answers with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model


def save_adapter(model: Any, path: Path, *, base: str, saved_as: str | None = None, **lora: Any) -> Any:
    """Put a random adapter on a model and save it.

    Args:
        model: transformers' own, of `base`; it is changed.
        base: Where it came from.
        saved_as: What the adapter names as its base, in the place of that.

    Returns:
        The model with its adapter, in float32, not merged.
    """
    torch.manual_seed(11)
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **lora}))
    for name, weight in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data.add_(torch.randn_like(weight) * 0.3)
    wrapped.peft_config["default"].base_model_name_or_path = saved_as or base
    wrapped.save_pretrained(path)
    return PeftModel.eval(wrapped)
