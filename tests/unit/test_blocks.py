"""Cache blocks: none is lost, none is shared but a prefix of the same mixture and tokens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.engine.blocks import BlockPool, PrefixKeys


def test_keys_name_mixture_and_everything_before() -> None:
    def keys(mixture: bytes, text: list[int], count: int | None = None) -> list[bytes]:
        return PrefixKeys(mixture, 16).of(text, len(text) if count is None else count)

    text = list(range(40))
    known = keys(b"a", text)
    assert len(known) == 2
    assert keys(b"a", text[:32], 31) == known[:1], "the second block is not full without its last token"
    changed = [*text[:20], 0, 0, 0, 0, *text[24:]]
    assert (keys(b"a", changed)[0], keys(b"a", changed)[1] == known[1]) == (known[0], False)
    assert not set(keys(b"b", text)) & set(known)
    assert keys(b"a", [1, *text[1:]]) != known
    assert not set(keys(b"a", [0, 5, *text[2:]])) & set(known), "a later block depends on the earlier ones"
    growing = PrefixKeys(b"a", 16)
    assert [growing.of(text, count) for count in (5, 16, 33, 31, 40)] == [[], known[:1], known, known[:1], known]


def test_a_published_prefix_is_found_again_and_evicted_last_block_first() -> None:
    pool = BlockPool(4)
    taken = pool.take(3, [b"x", b"y"])
    assert taken is not None
    blocks, known = taken
    assert known == 0
    pool.publish(blocks[0], b"x")
    pool.publish(blocks[1], b"y")
    again = pool.take(3, [b"x", b"z"])
    assert again is None, "one block is free, two are needed"
    pool.release(blocks)
    again = pool.take(3, [b"x", b"y"])
    assert again is not None
    assert (again[0][:2], again[1]) == (blocks[:2], 2)
    pool.release(again[0])
    other = pool.take(3)  # needs one of the two idle ones: the end of the prefix goes first
    assert other is not None
    assert blocks[1] in other[0]
    assert blocks[0] not in other[0]
    pool.check_integrity()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(["take", "release", "publish"]), st.integers(0, 7), st.integers(0, 3)), max_size=60),
)
def test_integrity_and_content_against_a_model(size: int, steps: list[tuple[str, int, int]]) -> None:
    pool = BlockPool(size)
    held: list[tuple[list[int], list[bytes], int]] = []
    content: dict[int, bytes] = {}  # what each block was last said to hold
    for verb, number, family in steps:
        keys = [b"%d-%d" % (family, i) for i in range(number)]
        if verb == "take":
            taken = pool.take(number + 1, keys)
            if taken is None:
                continue
            blocks, known = taken
            assert len(set(blocks)) == number + 1
            assert [content[block] for block in blocks[:known]] == keys[:known]
            private = {block for other, _, shared in held for block in other[shared:]}
            assert not private & set(blocks[known:])
            for block in blocks[known:]:
                content.pop(block, None)
            held.append((blocks, keys, known))
        elif held:
            blocks, keys, known = held[number % len(held)]
            if verb == "release":
                pool.release(blocks)
                held.remove((blocks, keys, known))
            else:
                for block, key in zip(blocks, keys, strict=False):
                    pool.publish(block, key)
                    content.setdefault(block, key)
        pool.check_integrity()
    for blocks, _, _ in held:
        pool.release(blocks)
    pool.check_integrity()
    assert pool.available == size
