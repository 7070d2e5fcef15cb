from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udfs.generation.prefixes import BLOCK, Prefixes, hash_blocks

prompts = st.lists(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=5), min_size=1, max_size=12)


def _tokens(blocks: list[int]) -> np.ndarray:
    return np.repeat(np.array(blocks, dtype=np.int32), BLOCK)


def _count_alike(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(prompts, st.lists(st.sampled_from([0, 1]), min_size=1, max_size=5), st.data())
def test_the_one_that_is_found_has_most_in_common(
    known: list[list[int]], wanted: list[int], data: st.DataObject
) -> None:
    prefixes = Prefixes[int]()
    for number, blocks in enumerate(known):
        prefixes.add(number, hash_blocks(_tokens(blocks), salt=False))
    gone = data.draw(st.sets(st.sampled_from(range(len(known)))))
    for number in gone:
        prefixes.remove(number, hash_blocks(_tokens(known[number]), salt=False))
    left = [_count_alike(blocks, wanted) for number, blocks in enumerate(known) if number not in gone]
    found = prefixes.find(hash_blocks(_tokens(wanted), salt=False))
    assert (found is not None) == (max(left, default=0) > 0)
    if found is not None:
        assert found not in gone
        assert _count_alike(known[found], wanted) == max(left)


def test_prompts_of_other_salts_have_nothing_in_common() -> None:
    prefixes, tokens = Prefixes[str](), np.arange(3 * BLOCK, dtype=np.int32)
    prefixes.add("long", hash_blocks(tokens, salt=True))
    assert prefixes.find(hash_blocks(tokens, salt=False)) is None
    assert prefixes.find(hash_blocks(tokens[: BLOCK + 3], salt=True)) == "long"
    assert prefixes.find(hash_blocks(tokens, salt=True), among={"other"}) is None


def test_a_part_of_a_block_has_no_hash() -> None:
    assert len(hash_blocks(np.arange(2 * BLOCK - 1, dtype=np.int32), salt=None)) == 1
