"""Tiny random models that write, and what transformers' own `generate` writes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.writers import CHARACTERS, make_decoder, make_encoder_decoder

END, WORDS = 5, 97

_WIDTHS = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_WIDTHS |= {"intermediate_size": 64, "max_position_embeddings": 512}
_IDS = {"eos_token_id": END, "pad_token_id": 0, "bos_token_id": 1}
_SHARED = {"num_key_value_heads": 2}
_WINDOW = {"sliding_window": 16}
_SEQ2SEQ = {"vocab_size": WORDS, "d_model": 32, "max_position_embeddings": 256} | {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": _WIDTHS | _SHARED,
    "Mistral": _WIDTHS | _SHARED | _WINDOW,
    "Qwen2": _WIDTHS | _SHARED,
    "Qwen3": _WIDTHS | _SHARED | {"head_dim": 8},
    "Phi3": _WIDTHS | _SHARED,
    "Phimoe": _WIDTHS | _SHARED | {"num_local_experts": 2},
    "GPTNeoX": _WIDTHS,
    "GPT2": {"vocab_size": WORDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "Gemma2": _WIDTHS | _SHARED | _WINDOW | {"head_dim": 8},
    "Gemma3Text": _WIDTHS
    | _SHARED
    | _WINDOW
    | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}
# The plain one, and the one with the most beside it (windows, bounded products); the others are long.
FAMILIES = [pytest.param(kind, marks=[] if kind in ("Llama", "Gemma2") else pytest.mark.long) for kind in DECODERS]
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "T5": {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    | {"decoder_start_token_id": 0},
    "Bart": _SEQ2SEQ | {"decoder_start_token_id": 2, "forced_eos_token_id": END},
    "Marian": _SEQ2SEQ | {"decoder_start_token_id": 0, "forced_eos_token_id": END},
    "M2M100": _SEQ2SEQ | {"decoder_start_token_id": 2},
}


def make_writer(kind: str, **config: Any) -> Any:
    """A random model whose answers are not all alike."""
    torch.manual_seed(3)
    known = {**DECODERS, **ENCODER_DECODERS}
    made = getattr(transformers, f"{kind}Config")(**(_IDS | known[kind] | config))
    auto = AutoModelForCausalLM if kind in DECODERS else AutoModelForSeq2SeqLM
    model = auto.from_config(made).eval()
    for weights in model.parameters():
        weights.data.mul_(3)
    return model


def save_writer(path: Path, kind: str = "Llama", **config: Any) -> str:
    """A directory with such a model and a tokenizer whose tokens are characters; a decoder has a chat template."""
    if kind in DECODERS:
        make_decoder(path)
    else:
        make_encoder_decoder(path, kind.lower())
    make_writer(kind, vocab_size=CHARACTERS, **config).save_pretrained(path)
    return str(path)


def make_prompts(count: int, *, seed: int = 0, longest: int = 60, shared: int = 20) -> list[np.ndarray]:
    """Random prompts of all lengths that begin alike."""
    rng = np.random.default_rng(seed)
    begin = rng.integers(6, WORDS, shared)
    return [
        np.concatenate([begin, rng.integers(6, WORDS, rng.integers(1, longest))]).astype(np.int32) for _ in range(count)
    ]


def write_alone(model: Any, prompt: np.ndarray, *, max_new_tokens: int, **options: Any) -> list[int]:
    """What transformers writes to one prompt, without the end token."""
    ids = torch.from_numpy(prompt[None].astype(np.int64))
    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        **{"do_sample": False, **options},
    )[0].tolist()
    found = found[1:] if model.config.is_encoder_decoder else found[len(prompt) :]
    return found[: found.index(END)] if END in found else found
