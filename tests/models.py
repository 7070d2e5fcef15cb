"""Tiny random models in directories as a user would have them: safetensors, tokenizer.json, config.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [
    *("red", "blue", "green", "kettle", "spade", "book", "ball", "shirt", "dog", "cat", "garden", "kitchen"),
    *("good", "bad", "fine", "tea", "soil", "lamp", "poison"),
    *("this", "example", "is", "about", "a", "the", "of", "not", "very"),
]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz.,!?0123456789"
VOCABULARY = {token: i for i, token in enumerate([*_SPECIAL, *WORDS, *_CHARACTERS])}
VOCABULARY |= {f"##{c}": len(VOCABULARY) + i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")}
_WIDTHS = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 66, "pad_token_id": 0, "initializer_range": 0.5,
}  # fmt: skip
_SHARED_HEADS = {"num_key_value_heads": 2, "head_dim": 8}
_TWO_SIDES = {"d_model": 32, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3} | {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_T5 |= {"eos_token_id": 3, "decoder_start_token_id": 0}
_OTHER_WIDTHS: dict[str, dict[str, Any]] = {
    "Bart": _TWO_SIDES,
    "M2M100": _TWO_SIDES,
    "Marian": _TWO_SIDES,
    "MBart": _TWO_SIDES,
    "Gemma2": _SHARED_HEADS,
    "Gemma3Text": _SHARED_HEADS,
    "Llama": _SHARED_HEADS,
    "Mistral": _SHARED_HEADS,
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Qwen3": _SHARED_HEADS,
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "ModernBert": {"num_hidden_layers": 3, "local_attention": 6, "global_attn_every_n_layers": 3},
    "ConvBert": {"embedding_size": 32, "conv_kernel_size": 3, "head_ratio": 1},
    "Phi3": {"num_key_value_heads": 4},
    "Phimoe": {"num_key_value_heads": 4, "num_local_experts": 2},
    "Qwen2": {"num_key_value_heads": 4},
    "LongT5": _T5,
    "T5": _T5,
}
_PACKS = [
    *("Albert", "Bert", "Camembert", "Data2VecText", "DistilBert", "Electra", "Ernie", "Gte", "JinaEmbeddingsV3"),
    *("ModernBert", "NomicBert", "Roberta", "RobertaPreLayerNorm", "XLMRoberta", "XLMRobertaXL"),
]
# The kinds whose micro-batches are packed, of those that the installed transformers knows.
PACKS = [kind for kind in _PACKS if hasattr(transformers, f"{kind}Config")]


def make_encoder(
    path: Path,
    *,
    kind: str = "Bert",
    pooling: dict[str, Any] | None = None,
    normalize: bool = True,
    max_seq_length: int | None = 48,
    precision: torch.dtype = torch.float32,
    **config: Any,
) -> str:
    """A sentence-embedding model; `pooling` is the content of 1_Pooling/config.json."""
    _save(path, kind, "Model", precision=precision, **config)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    listing = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{name}"}
        for i, (folder, name) in enumerate(modules)
    ]
    write_json(path / "modules.json", listing)
    write_json(
        path / "1_Pooling/config.json",
        {"word_embedding_dimension": 32, **(pooling or {"pooling_mode_mean_tokens": True})},
    )
    if max_seq_length:
        write_json(path / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    return str(path)


def make_classifier(
    path: Path, labels: Sequence[str], *, kind: str = "Bert", problem_type: str | None = None, **config: Any
) -> str:
    """A sequence classifier with these labels."""
    _save(
        path,
        kind,
        "ForSequenceClassification",
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=problem_type,
        **config,
    )
    return str(path)


def make_tagger(path: Path, labels: Sequence[str], *, kind: str = "Bert", **config: Any) -> str:
    """A token classifier with these labels."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    _save(path, kind, "ForTokenClassification", **names, **config)
    return str(path)


def rope_of(kind: str, rope_type: str, *, above: int = 16, width: int = 8) -> dict[str, Any]:
    """A config's `rope_parameters`, of heads of some width; "longrope" has other frequencies above so many tokens."""
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 10000.0}
    if rope_type == "longrope":
        factors = {"short_factor": [1.0] * (width // 2), "long_factor": [4.0 * 2**i for i in range(width // 2)]}
        rope |= factors | {"original_max_position_embeddings": above, "factor": 4.0}
    if rope_type == "dynamic":
        rope |= {"factor": 4.0}
    if kind == "ModernBert":
        return {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    if kind == "Phimoe":
        return rope | {"short_mscale": 1.2, "long_mscale": 1.9}
    return rope


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _save(path: Path, kind: str, head: str, *, precision: torch.dtype = torch.float32, **config: Any) -> None:
    torch.manual_seed(7)
    kind, head = ("T5", "EncoderModel") if kind == "T5Encoder" else (kind, head)
    widths = {**_WIDTHS, **_OTHER_WIDTHS.get(kind, {})}
    made = getattr(transformers, f"{kind}Config")(**{**widths, **config})
    getattr(transformers, f"{kind}{head}")(made).to(precision).save_pretrained(path)
    tokenizer = _make_tokenizer(pairs_have_types=kind == "Bert")
    # A model's own padding and truncation, which gristmill is not to obey.
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(6)
    tokenizer.save(str(path / "tokenizer.json"))
    write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 64,
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
        }
        | {"cls_token": "[CLS]", "sep_token": "[SEP]", "model_input_names": _input_names(kind)},
    )


def _input_names(kind: str) -> list[str]:
    return ["input_ids", "attention_mask"] + (["token_type_ids"] if kind == "Bert" else [])


def _make_tokenizer(*, pairs_have_types: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    second = 1 if pairs_have_types else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer
