"""Tokens that tokenizer.json does not tell alone: as transformers' AutoTokenizer reads all of a model's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tests.models import make_encoder, write_json
from udfs.errors import ModelError
from udfs.model.files import open_model
from udfs.text.agreement import find_disagreement
from udfs.text.tokenizing import Tokenizer as Tokenizing
from udfs.text.tokenizing import load_backend

_CORPUS = ["a red kettle and a blue one", "the garden is fine", "Tea for two, soil and [NEW] lamps <x>"] * 9
_TEXTS = ["a red kettle", "a [NEW] red[NEW]", "Red <x> Tea", " the <s>garden</s> ", "[MASK] a [SEP] b", "<mask>x", ""]
_NEW = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}


def _train_bert() -> tuple[Tokenizer, str, dict[str, str]]:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(_CORPUS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made, "BertTokenizer", {f"{token[1:-1].lower()}_token": token for token in special}


def _train_gpt2() -> tuple[Tokenizer, str, dict[str, str]]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    return made, "GPT2Tokenizer", {"eos_token": "<|end|>", "bos_token": "<|end|>", "unk_token": "<|end|>"}


def _train_llama() -> tuple[Tokenizer, str, dict[str, str]]:
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(set("".join(_TEXTS)))  # real ones know all bytes
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(_CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return made, "LlamaTokenizer", {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def _train_xlmr() -> tuple[Tokenizer, str, dict[str, str]]:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(_CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    return made, "XLMRobertaTokenizer", named | {"cls_token": "<s>", "sep_token": "</s>"}


_KINDS = {"bert": _train_bert, "gpt2": _train_gpt2, "llama": _train_llama, "xlm-roberta": _train_xlmr}


def _listed(made: Tokenizer) -> dict[str, dict[str, Any]]:
    """What tokenizer_config.json has of the tokens that tokenizer.json knows."""
    tokens = made.get_added_tokens_decoder().items()
    return {str(n): {"content": t.content, **{flag: getattr(t, flag) for flag in _NEW}} for n, t in tokens}


def _forget_last(made: Tokenizer) -> tuple[str, str]:
    """tokenizer.json without one of its tokens, and that."""
    told = json.loads(made.to_str())
    return told["added_tokens"].pop()["content"], json.dumps(told)


Files = dict[str, Any]  # tokenizer.json as text, the others as objects
_CASES: dict[str, Callable[[Tokenizer], Files]] = {
    "one that is listed": lambda made: {
        "tokenizer_config": {
            "added_tokens_decoder": {**_listed(made), str(made.get_vocab_size()): {"content": "[NEW]", **_NEW}}
        }
    },
    "one that is listed alone": lambda made: {
        "tokenizer_config": {"added_tokens_decoder": {str(made.get_vocab_size()): {"content": "[NEW]", **_NEW}}}
    },
    "other flags": lambda made: {
        "tokenizer_config": {
            "added_tokens_decoder": {n: {**t, "lstrip": True, "rstrip": True} for n, t in _listed(made).items()}
        }
    },
    "additional ones": lambda made: {"tokenizer_config": {"additional_special_tokens": ["[NEW]", "<x>"]}},
    "extra ones": lambda made: {"tokenizer_config": {"extra_special_tokens": {"image_token": "<x>"}}},
    "one of the model's own": lambda made: {"tokenizer_config": {"image_token": "<x>"}},
    "one of the map": lambda made: {"special_tokens_map": {"mask_token": {"content": "<x>", **_NEW, "lstrip": True}}},
    "a map that is not read": lambda made: {
        "tokenizer_config": {"added_tokens_decoder": _listed(made)},
        "special_tokens_map": {"mask_token": "<x>"},
    },
    "one of a file of its own": lambda made: {"added_tokens": {"[NEW]": made.get_vocab_size()}},
    "one that is named and not known": lambda made: {
        "tokenizer_config": {"mask_token": _forget_last(made)[0]},
        "tokenizer": _forget_last(made)[1],
    },
    "one that is not listed": lambda made: {
        "tokenizer_config": {"added_tokens_decoder": dict(list(_listed(made).items())[:-1])}
    },
    "ends": lambda made: {"tokenizer_config": {"add_bos_token": True, "add_eos_token": True}},
    "no ends": lambda made: {"tokenizer_config": {"add_bos_token": False, "add_eos_token": False}},
    "special tokens as texts": lambda made: {"tokenizer_config": {"split_special_tokens": True}},
    "case": lambda made: {"tokenizer_config": {"do_lower_case": False}},
    "a space before": lambda made: {"tokenizer_config": {"add_prefix_space": True}},
    "a normalizer of its own": lambda made: {"tokenizer": _with(made, normalizer={"type": "Lowercase"})},
    "nothing put around": lambda made: {"tokenizer": _with(made, post_processor=None)},
}


def _with(made: Tokenizer, **parts: Any) -> str:
    return json.dumps(json.loads(made.to_str()) | parts)


def _save(folder: Path, made: Tokenizer, named: dict[str, str], own: str, files: Files) -> str:
    (folder / "tokenizer.json").write_text(files.get("tokenizer") or made.to_str())
    told = {"tokenizer_class": own, "model_max_length": 64, **named, **files.get("tokenizer_config", {})}
    write_json(folder / "tokenizer_config.json", told)
    for name in {"special_tokens_map", "added_tokens"} & files.keys():
        write_json(folder / f"{name}.json", files[name])
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"vocab_size": 400})
    return str(folder)


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize(("kind", "by_itself"), [*((kind, False) for kind in _KINDS), ("bert", True)])
def test_tokens_are_those_that_transformers_reads(kind: str, case: str, by_itself: bool, tmp_path: Path) -> None:
    made, own, named = _KINDS[kind]()
    make_encoder(tmp_path)
    name = _save(tmp_path, made, named, "PreTrainedTokenizerFast" if by_itself else own, _CASES[case](made))
    wanted, found = transformers.AutoTokenizer.from_pretrained(name), load_backend(open_model(name))
    found.no_padding()
    found.no_truncation()
    for text in _TEXTS:
        assert found.encode(text).ids == wanted(text)["input_ids"], text
        assert found.encode(text, "the tea").ids == wanted(text, "the tea")["input_ids"], text


@pytest.mark.parametrize("kind", _KINDS)
def test_files_that_say_the_same_are_read_without_transformers(kind: str, tmp_path: Path) -> None:
    made, own, named = _KINDS[kind]()
    make_encoder(tmp_path)
    files = {"tokenizer_config": {"added_tokens_decoder": _listed(made)}, "special_tokens_map": named}
    opened = open_model(_save(tmp_path, made, named, own, files))
    assert find_disagreement(opened, made) is None


def test_files_that_no_tokenizer_can_be_made_of_are_refused_with_what_they_say(tmp_path: Path) -> None:
    name = make_encoder(tmp_path)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_json(tmp_path / "tokenizer_config.json", told | {"added_tokens_decoder": {"70": "[NEW]"}})
    with pytest.raises(ModelError, match=r"say otherwise.*save it anew with transformers"):
        load_backend(open_model(name))


def test_what_transformers_makes_of_the_files_is_not_held_to_tokenizer_json_alone(tmp_path: Path) -> None:
    name = make_encoder(tmp_path)
    files = open_model(name)
    assert Tokenizing(files, max_tokens=None, overflow="truncate")._encoder._faster is not None
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_json(tmp_path / "tokenizer_config.json", told | {"split_special_tokens": True})
    assert Tokenizing(files, max_tokens=None, overflow="truncate")._encoder._faster is None
