from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.decoders import make_options
from tests.writers import CHARACTERS, make_decoder
from udfs.errors import SpecError
from udfs.generation.choices import Choices
from udfs.generation.picking import Picker
from udfs.generation.sequences import Sequence
from udfs.model.files import open_model
from udfs.text.choices import encode_choices
from udfs.text.codec import Codec, load_codec
from udfs.wire.written import STOP

END = CHARACTERS - 1


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return load_codec(open_model(make_decoder(tmp_path_factory.mktemp("decoder"))))


def _write(picker: Picker, wanted: list[int] | None = None, *, seed: int = 0) -> Sequence:
    """An answer by random logits, or by those that want some tokens and then the end."""
    sequence, rng = picker.begin(None, np.zeros(1, dtype=np.int32)), torch.Generator().manual_seed(seed)
    while sequence.finish is None:
        logits = torch.rand(1, CHARACTERS, generator=rng)
        if wanted is not None:
            logits[0, [*wanted, END][len(sequence.ids)]] = 9
        picker.pick(logits, [sequence])
    return sequence


def _picker(codec: Codec, choices: tuple[str, ...]) -> Picker:
    options = make_options(choices=choices, max_new_tokens=64)
    tokens = encode_choices(codec, choices, max_new_tokens=64)
    return Picker(options, ends=frozenset({END}), tokenizer=None, choices=tokens)


_TEXT = st.text("ab >é🎉", min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(_TEXT, min_size=1, max_size=12, unique=True), seed=st.integers(0, 9))
def test_whatever_a_model_wants_an_answer_is_one_of_the_choices(codec: Codec, choices: list[str], seed: int) -> None:
    picker = _picker(codec, tuple(choices))
    sequence = _write(picker, seed=seed)
    assert codec.decode([np.array(sequence.ids)])[0].strip() in choices
    assert sequence.finish == STOP


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(_TEXT, min_size=1, max_size=12, unique=True), before=st.sampled_from(["", " "]))
def test_a_model_reaches_each_choice_though_one_begins_another(codec: Codec, choices: list[str], before: str) -> None:
    picker = _picker(codec, tuple(choices))
    for choice in choices:
        (wanted,) = codec.encode([before + choice], special=False)
        assert _write(picker, wanted).ids == wanted


def test_choices_of_several_rows_are_bound_each_by_its_own_place() -> None:
    choices = Choices([[1, 2], [1, 3, 4], [1]], frozenset({9}))
    first, second = choices.begin(), choices.begin()
    second.accept(1)
    masked = choices.mask(torch.zeros(2, 10), [first, second])
    assert [torch.isfinite(row).nonzero()[:, 0].tolist() for row in masked] == [[1], [2, 3, 9]]
    second.accept(2)
    assert second.is_over()
    assert not first.is_over()


def test_fifty_thousand_choices_are_bound_as_a_few_are() -> None:
    tokens = [[5, number // 1000, number // 40 % 25, 100 + number % 40] for number in range(50_000)]
    picker = Picker(make_options(choices=("any",)), ends=frozenset({END}), tokenizer=None, choices=tokens)
    assert _write(picker, tokens[31_415]).ids == tokens[31_415]
    assert all(_write(picker, seed=seed).ids in tokens for seed in range(5))


@pytest.mark.long
def test_fifty_thousand_choices_are_written_by_their_tokenizer(codec: Codec) -> None:
    choices = tuple(f"Home > Shelf {number // 100} > Item {number}" for number in range(50_000))
    picker = _picker(codec, choices)
    (wanted,) = codec.encode([choices[31_415]], special=False)
    assert _write(picker, wanted).ids == wanted
    assert codec.decode([np.array(_write(picker).ids)])[0].strip() in choices


def test_choices_that_the_tokenizer_cannot_write_or_that_are_too_long_are_told(codec: Codec) -> None:
    with pytest.raises(SpecError, match=r"choices has 'a</s>', which the model's tokenizer cannot write"):
        encode_choices(codec, ["b", "a</s>"], max_new_tokens=9)
    with pytest.raises(SpecError, match="choices has 'abcdef', of 6 tokens, but max_new_tokens is 5"):
        encode_choices(codec, ["abcdef"], max_new_tokens=5)


def test_a_tokenizer_with_a_space_of_its_own_writes_choices_after_a_line_too(tmp_path: Path) -> None:
    model = make_decoder(tmp_path)
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["\n", *"▁aet"])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.save(str(tmp_path / "tokenizer.json"))
    codec = load_codec(open_model(model))
    told = [codec.show(np.array(ids)) for ids in encode_choices(codec, ["tea"], max_new_tokens=9)]
    found = encode_choices(codec, ["tea"], max_new_tokens=9)
    t, e, a, space = (backend.token_to_id(token) for token in "tea▁")
    assert [space, t, e, a] in found
    assert [t, e, a] in found
    assert set(told) <= {"tea", " tea"}
