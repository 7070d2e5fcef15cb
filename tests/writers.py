"""Directories of models that write, without weights: what a worker reads of them. A character is a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.models import write_json

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('begin with the user') }}{% endif %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_decoder(path: Path, *, chat: str | None = CHAT, positions: int = 400, **config: Any) -> str:
    """A decoder with a chat template."""
    told = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": positions}
    _save(path, {**told, **config})
    if chat is not None:
        (path / "chat_template.jinja").write_text(chat)
    return str(path)


def make_encoder_decoder(path: Path, kind: str = "t5", **config: Any) -> str:
    """An encoder-decoder; `kind` is its model_type."""
    told = {"architectures": ["AnyForConditionalGeneration"], "model_type": kind, "is_encoder_decoder": True}
    _save(path, {**told, **config})
    return str(path)


def _save(path: Path, config: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", config)
    save_file({"none": np.zeros(1, dtype=np.float32)}, path / "model.safetensors")
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
