"""Models of real shapes with random weights, for a benchmark where no model can be fetched: speed needs no training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from jobs.errors import UserError
from udfs.model.files import ModelFiles
from udfs.model.quiet import quiet_transformers

# hidden width, layers, heads
SHAPES = {
    "minilm-l6": (384, 6, 12),
    "bert-base": (768, 12, 12),
    "bert-large": (1024, 24, 16),
    "no-layers": (384, 0, 12),  # looks vectors up and averages them: what is left is what stands around a model
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def make_shape(name: str, files: ModelFiles, folder: Path) -> str:
    """Write a BERT of a shape with random weights, the tokenizer of another model and mean pooling.

    Args:
        name: One of SHAPES.
        files: The model whose tokenizer it has.
        folder: Where to.

    Returns:
        The model's directory.

    Raises:
        UserError: There is no such shape.
    """
    if name not in SHAPES:
        raise UserError(f"--shape {name}: choose one of {', '.join(SHAPES)}")
    quiet_transformers()
    import torch
    from transformers import BertConfig, BertModel

    width, layers, heads = SHAPES[name]
    config = BertConfig(
        vocab_size=max(30522, int(files.config.get("vocab_size", 0))),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    torch.manual_seed(0)
    BertModel(config).to(torch.bfloat16).save_pretrained(folder)
    for file in _TOKENIZER_FILES:
        found = next((d / file for d in files.folders if (d / file).is_file()), None)
        if found:
            shutil.copy(found, folder / file)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path, _ in kinds[1:]:
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return str(folder)
