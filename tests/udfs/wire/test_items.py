from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udfs.wire.items import Items, join_items, pad

LENGTHS = st.lists(st.integers(1, 600), max_size=200).map(lambda lengths: np.array(lengths, dtype=np.int64))


@given(st.lists(st.tuples(LENGTHS, st.booleans()), min_size=1, max_size=4), st.randoms())
def test_items_are_joined_and_taken_with_their_own_tokens(parts: list[tuple[np.ndarray, bool]], random: object) -> None:
    made = [_items(lengths, typed=typed) for lengths, typed in parts]
    joined = join_items(made)
    expected = [tokens for part in made for tokens in _tokens(part)]
    assert _tokens(joined) == expected
    wanted = [i for i in range(len(expected)) if random.random() < 0.5]  # type: ignore[attr-defined]
    assert _tokens(joined.take(np.array(wanted, dtype=np.int64))) == [expected[i] for i in wanted]


def _items(lengths: np.ndarray, *, typed: bool) -> Items:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(offsets[-1], dtype=np.int32)
    return Items(ids, offsets, ids % 2 if typed else None)


def _tokens(items: Items) -> list[list[tuple[int, int]]]:
    types = np.zeros_like(items.ids) if items.type_ids is None else items.type_ids
    return [
        list(zip(items.ids[a:b].tolist(), types[a:b].tolist(), strict=True))
        for a, b in itertools.pairwise(items.offsets.tolist())
    ]


@given(LENGTHS.filter(len), st.sampled_from([1, 8]), st.randoms())
def test_padding_keeps_each_token_in_its_place(lengths: np.ndarray, multiple: int, random: object) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    batch = np.array(random.sample(range(len(lengths)), k=random.randint(1, len(lengths))))  # type: ignore[attr-defined]
    values, real = pad(flat, offsets, batch, pad_multiple=multiple, fill=-5)
    assert values.shape[1] % multiple == 0
    for row, item in enumerate(batch):
        expected = flat[offsets[item] : offsets[item + 1]]
        assert values[row, : len(expected)].tolist() == expected.tolist()
        assert (values[row, len(expected) :] == -5).all()
        assert real[row].tolist() == [True] * len(expected) + [False] * (values.shape[1] - len(expected))
