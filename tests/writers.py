"""Directories of models that write, without weights: what a worker reads of them. A character is a token."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.models import write_json

ALPHABET = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
CHARACTERS = len(ALPHABET) + 2  # tokens, with the two special ones
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
    tokenizer = Tokenizer(models.BPE(vocab=ALPHABET, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})


def make_translator(path: Path, family: str) -> str:
    """A translator whose tokenizer transformers alone knows: `marian`, `m2m`, `nllb` or `mbart`."""
    path.mkdir(parents=True, exist_ok=True)
    _TRANSLATORS[family](path)
    kind = {"m2m": "m2m_100", "nllb": "m2m_100"}.get(family, family)
    told = {"architectures": ["AnyForConditionalGeneration"], "model_type": kind, "is_encoder_decoder": True}
    write_json(path / "config.json", {**told, "max_position_embeddings": 64, "decoder_start_token_id": 2})
    save_file({"none": np.zeros(1, dtype=np.float32)}, path / "model.safetensors")
    return str(path)


def _save_marian(path: Path) -> None:
    model, pieces = _train_pieces()
    for name in ("source.spm", "target.spm"):
        (path / name).write_bytes(model)
    _save_pieces(path, ["</s>", "<unk>", ">>de<<", ">>fr<<", *pieces, "<pad>"], "MarianTokenizer")


def _save_m2m(path: Path) -> None:
    model, pieces = _train_pieces()
    (path / "sentencepiece.bpe.model").write_bytes(model)
    _save_pieces(path, ["<s>", "<pad>", "</s>", "<unk>", *pieces], "M2M100Tokenizer")


def _save_nllb(path: Path) -> None:
    characters = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrst"]
    vocab = {token: i for i, token in enumerate(characters)}
    transformers.NllbTokenizer(vocab=vocab, merges=[]).save_pretrained(path)


def _save_mbart(path: Path) -> None:
    vocab = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")] + [(c, -2.0) for c in "▁abcdefghijklmnopqrst"]
    transformers.MBart50Tokenizer(vocab=vocab).save_pretrained(path)


_TRANSLATORS = {"marian": _save_marian, "m2m": _save_m2m, "nllb": _save_nllb, "mbart": _save_mbart}


def _train_pieces() -> tuple[bytes, list[str]]:
    """A sentencepiece model, and its pieces but for the special ones."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red kettle is about tea"] * 5),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return model.getvalue(), [pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size())]


def _save_pieces(path: Path, tokens: list[str], kind: str) -> None:
    write_json(path / "vocab.json", {token: i for i, token in enumerate(tokens)})
    write_json(path / "tokenizer_config.json", {"tokenizer_class": kind, "source_lang": "en", "target_lang": "de"})
