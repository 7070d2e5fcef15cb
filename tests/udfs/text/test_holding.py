from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece

from jobs.bench.corpus import docstrings
from tests.conftest import MINILM
from udfs.model.files import open_model
from udfs.text import holding
from udfs.text.encoding import Encoder, by_reference
from udfs.text.fast import choose_fast, load_fast
from udfs.text.holding import Trial, Verdict, try_tokenizer
from udfs.wire.home import try_hold
from udfs.wire.items import Items

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LANGUAGES = [
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "El niño comió piñas; ¿verdad? Ça dépend d’où l’on vient.",
    "Быстрая коричневая лиса. Η γρήγορη καφέ αλεπού. ქართული ენა",
    "敏捷的棕色狐狸跳过了懒狗。素早い茶色の狐がのろまな犬を飛び越える。 빠른 갈색 여우",
    "الثعلب البني السريع يقفز. השועל החום המהיר. तेज़ भूरी लोमड़ी। สุนัขจิ้งจอก",
    "Tiếng Việt: ằ ẵ ặ. 👩‍👩‍👧‍👦 🏳️‍🌈 ☕️ 🇩🇪 ﷺ ﬁ Ⅷ ½ ① x²+y₂=∑∫√π e\u0301 n\u0303",
]


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator([*docstrings(400), *LANGUAGES], trainer)
    return tokenizer


def _word_piece(**options: bool) -> Tokenizer:
    made = Tokenizer(WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(**options), pre_tokenizers.BertPreTokenizer()
    return _train(made, trainers.WordPieceTrainer(vocab_size=3000, special_tokens=SPECIAL, show_progress=False))


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    options = {"unk_token": "<unk>", "special_tokens": special, "show_progress": False}
    return _train(made, trainers.UnigramTrainer(vocab_size=2000, **options))


def _byte_fallback() -> Tokenizer:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    _train(trained, trainers.BpeTrainer(vocab_size=3000, special_tokens=special, show_progress=False))
    told = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in told["merges"]]
    made = Tokenizer(models.BPE(told["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special[:3]])
    return made


# How words are cut, as in the tokenizers of Llama 3 and of Qwen 2.
_LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA.replace("{1,3}", "")


def _bytes(words: str | None = None, normalizer: Any = None, *, spaced: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=words is None)
    cut = [pre_tokenizers.Split(Regex(words), "isolated")] if words else []
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([*cut, by_bytes]), decoders.ByteLevel()
    if normalizer:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(made, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece, lower case": lambda: _word_piece(lowercase=True),
    "WordPiece": lambda: _word_piece(lowercase=False),
    "WordPiece, accents kept": lambda: _word_piece(lowercase=True, strip_accents=False),
    "Unigram": _unigram,
    "BPE with byte fallback": _byte_fallback,
    "BPE of bytes, GPT-2": _bytes,
    "BPE of bytes, RoBERTa": lambda: _bytes(spaced=True),
    "BPE of bytes, Llama 3": lambda: _bytes(_LLAMA),
    "BPE of bytes, Qwen": lambda: _bytes(_QWEN, normalizers.NFC()),
}


def _soups(count: int) -> list[str]:
    """Texts of everything, other ones than a trial has."""
    draw, found = random.Random(11), docstrings(400)
    special = [*SPECIAL, "<s>", "</s>", "<0x0A>", "▁", "##ing", "\t", "\r\n", "\u200d", "\u0301", "\x13", "\x00", "�"]
    texts = []
    for number in range(count):
        if number % 3 == 0:
            text, at = draw.choice(found)[:300], draw.randrange(300)
            texts.append(text[:at] + draw.choice([*LANGUAGES, *special]) + text[at:])
        elif number % 3 == 1:
            parts = (chr(draw.randrange(32, 127)) if draw.random() < 0.9 else draw.choice(special) for _ in range(40))
            texts.append("".join(parts))
        else:
            start = draw.randrange(0x20, 0x20000)
            points = (start + draw.randrange(64) for _ in range(draw.randrange(1, 30)))
            texts.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
    return texts


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_texts_of_all_scripts_are_tokenized_as_by_the_reference(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, file = KINDS[kind](), tmp_path / "tokenizer.json"
    backend.save(str(file))
    verdict = try_tokenizer(file)
    assert verdict is not None
    # Of others it differs by what they were trained on.
    assert verdict.equal or not kind.startswith(("WordPiece", "BPE of bytes"))
    monkeypatch.setattr(holding.Trial, "recall", lambda _: verdict)
    encoder = Encoder(backend, file)
    assert encoder.name == (choose_fast(file) if verdict.equal else "tokenizers")
    texts = [*_soups(9_000), *docstrings(1_000), *LANGUAGES, "", " ", "\n"]
    found, wanted = encoder(texts), by_reference(backend, texts)
    assert found.offsets.tolist() == wanted.offsets.tolist()
    assert found.ids.tolist() == wanted.ids.tolist()
    assert (
        not verdict.equal or encoder._find_plain(docstrings(1_000), verdict).mean() > 0.5
    )  # else nothing was compared


def test_kinds_for_which_no_library_is_known_are_left_to_the_reference(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "tea": 1}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    assert try_tokenizer(tmp_path / "tokenizer.json") == Verdict(equal=False)
    assert Trial(tmp_path / "tokenizer.json").recall() is None


def test_a_trial_that_takes_too_long_tells_nothing() -> None:
    assert try_tokenizer(open_model(MINILM).root / "tokenizer.json", limit_s=-1) is None


def test_a_library_that_differs_in_one_text_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_model(MINILM).root / "tokenizer.json"
    monkeypatch.setattr(holding, "_BLOCKS", ((0x20, 0x80, 1),))

    assert try_tokenizer(file) == Verdict(True, True, ((0x20, 0x7F),))
    fast = load_fast("tokie", file)

    class CutsLongWords:
        def encode(self, texts: list[str]) -> Items:
            return fast.encode([text.replace("a" * 250, "a") for text in texts])

    monkeypatch.setattr(holding, "load_fast", lambda *_: CutsLongWords())
    assert try_tokenizer(file) == Verdict(equal=False)


def test_what_was_found_is_remembered_until_the_tokenizer_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "top", lambda: tmp_path / "top")
    tried: list[Path] = []
    monkeypatch.setattr(holding, "try_tokenizer", lambda file: tried.append(file) or Verdict(True, True, ((32, 99),)))
    file = tmp_path / "tokenizer.json"
    file.write_text('{"model": {"type": "WordPiece"}}')
    assert Trial(file).recall() is None
    Trial(file).make()
    Trial(file).make()
    assert Trial(file).recall() == Verdict(True, True, ((32, 99),))
    assert len(tried) == 1
    file.write_text('{"model": {"type":  "WordPiece"}}')
    assert Trial(file).recall() is None
    Trial(file).make()
    assert len(tried) == 2


def test_one_process_of_a_node_makes_the_trial_and_a_worker_need_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(holding, "top", lambda: tmp_path / "top")
    monkeypatch.setattr(holding, "try_tokenizer", lambda file: pytest.fail("another one does"))
    monkeypatch.setattr(holding.subprocess, "Popen", lambda command, **_: started.append(command) or StandIn())
    file = tmp_path / "tokenizer.json"
    file.write_text('{"model": {"type": "WordPiece"}}')
    trial = Trial(file)
    trial.start()
    trial.start()
    assert [command[-2:] for command in started] == [["udfs.text.holding", str(file)]]
    holding.make_top(tmp_path / "top")
    lock = try_hold(trial._kept.with_suffix(".lock"))  # type: ignore[union-attr]
    trial.make()
    os.close(lock)  # type: ignore[arg-type]


class StandIn:
    def poll(self) -> None: ...


def test_a_verdict_covers_texts_of_its_characters_alone() -> None:
    verdict = Verdict(True, False, ((32, 127), (0x4E00, 0xA000)))
    texts = ["tea", "茶 tea", "tea\x13", "", " tea", "tea\n", "👩", "te茶a"]
    assert verdict.covers(texts).tolist() == [True, True, False, False, False, False, False, True]
    assert Verdict(True, True, ((32, 127),)).covers([" tea "]).tolist() == [True]
