"""Tiny random models of any architecture whose config transformers knows, without weights on a disk."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel

VOCABULARY, LAYERS = 120, 3
# What configs call their widths; each takes those that it has.
_WIDTHS = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.3,
    "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "ffn_dim": 64, "word_embed_proj_dim": 32, "rotary_dim": 4,
    "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256,
}  # fmt: skip


def knows(model_type: str) -> bool:
    """The installed transformers has the architecture."""
    return model_type in CONFIG_MAPPING


def make_model(model_type: str, **options: Any) -> Any:
    """A base model in evaluation mode, with plain attention; it has windows of five tokens where it can have any."""
    kind = CONFIG_MAPPING[model_type]
    plain = kind()
    known = {**plain.to_dict(), **getattr(kind, "attribute_map", {})}
    config = kind(**{name: value for name, value in _WIDTHS.items() if name in known} | options)
    torch.manual_seed(1)
    model = AutoModel.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for weights in model.parameters():  # some are left as the memory was
        if not torch.isfinite(weights).all():
            weights.data.normal_(0, 0.2)
    return model
