"""Tiny random models as sentence-transformers itself saves them, of any modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, LayerNorm, Transformer
from tokenizers import Tokenizer

from tests.engine_rows import undisturbed_rows
from tests.models import VOCABULARY, make_encoder, write_json
from udfs.tasks.registry import make_spec

WIDTH = 32


def make_embedder(path: Path, *modules: Any, kind: str = "Bert", **config: Any) -> str:
    """An encoder with these modules after it, and with any `prompts` or `default_prompt_name`."""
    torch.manual_seed(3)
    prompts = {name: config.pop(name) for name in ("prompts", "default_prompt_name") if name in config}
    encoder = Transformer(make_encoder(path / "encoder", kind=kind, **config), max_seq_length=48)
    for module in modules:
        _fill(module)
    SentenceTransformer(modules=[encoder, *modules], device="cpu", **prompts).save_pretrained(str(path / "model"))
    return str(path / "model")


def _fill(module: Any) -> None:
    """Random weights where a new layer has ones and zeros."""
    if isinstance(module, LayerNorm):
        torch.nn.init.normal_(module.norm.weight)
        torch.nn.init.normal_(module.norm.bias)


def make_dense(outputs: int = 24, activation: str = "Tanh", *, inputs: int = WIDTH, **options: Any) -> Dense:
    return Dense(inputs, outputs, activation_function=getattr(torch.nn, activation)(), **options)


def make_static(path: Path, *, normalize: bool = True, by: str = "sentence-transformers", width: int = WIDTH) -> str:
    """A static model, as `sentence-transformers` saves it or as `model2vec` does, which shares rows and weighs them."""
    torch.manual_seed(5)
    path.mkdir(parents=True)
    Tokenizer.from_file(f"{make_encoder(path / 'encoder')}/tokenizer.json").save(str(path / "tokenizer.json"))
    held = Tokenizer.from_file(str(path / "tokenizer.json"))
    held.no_truncation()
    held.save(str(path / "tokenizer.json"))
    tokens = len(VOCABULARY)
    if by == "model2vec":
        tensors = {"embeddings": torch.randn(20, width), "mapping": torch.randint(0, 20, (tokens,)).int()}
        tensors["weights"] = torch.rand(tokens, dtype=torch.float64)
        write_json(path / "config.json", {"model_type": "model2vec", "normalize": normalize})
    else:
        tensors = {"embedding.weight": torch.randn(tokens, width)}
    save_file(tensors, path / "model.safetensors")
    modules = [("", "StaticEmbedding")] + ([("1_Normalize", "Normalize")] if normalize else [])
    listing = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (folder, kind) in enumerate(modules)
    ]
    write_json(path / "modules.json", listing)
    return str(path)


def embed(model: str, texts: list[str], **options: Any) -> list[dict[str, Any]]:
    """The rows that gristmill makes of texts, in float32."""
    options = {"precision": "float32", "max_batch_tokens": 512, **options}
    return undisturbed_rows(texts, make_spec("feature-extraction", model, **options))


def vectors(model: str, texts: list[str], **options: Any) -> np.ndarray:
    rows = embed(model, texts, **options)
    assert all(row["error"] is None for row in rows)
    return np.array([row["embedding"] for row in rows])


def encode(model: str, texts: list[str], **options: Any) -> np.ndarray:
    """What sentence-transformers makes of them."""
    return SentenceTransformer(model, device="cpu", local_files_only=True).encode(texts, **options)
