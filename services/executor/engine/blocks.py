"""Which block of the key/value cache belongs to whom, and which hold a prompt prefix that may be used again. Pure: touches no tensors."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile


class PrefixKeys:
    """A key for each full block of a sequence, made as it grows.

    A key names the mixture and every token up to the block's end, so two mixtures, or two texts that differ anywhere before, never share
    a block.
    """

    def __init__(self, mixture: bytes, block_tokens: int) -> None:
        self._keys, self._block_tokens = [mixture], block_tokens

    def of(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """Of the blocks that the first `count` of `tokens` fill. What was there in the last call must not have changed since."""
        for end in range(len(self._keys) * self._block_tokens, count + 1, self._block_tokens):
            block = array("q", tokens[end - self._block_tokens : end]).tobytes()
            self._keys.append(hashlib.blake2b(self._keys[-1] + block, digest_size=16).digest())
        return self._keys[1 : count // self._block_tokens + 1]


class BlockPool:
    """A fixed number of blocks: each is free, held by sequences, or idle with a prefix that the next one may find."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._holders: dict[int, int] = {}
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free) + len(self._idle)

    def fits(self, count: int, keys: Sequence[bytes] = (), spare: int = 0) -> bool:
        """Whether `take` of the same would leave `spare` blocks available. Looks only: no prefix is lost by asking."""
        known = self._known(keys[:count])
        return count - len(known) + spare <= self.available - sum(block in self._idle for block in known)

    def take(self, count: int, keys: Sequence[bytes] = ()) -> tuple[list[int], int] | None:
        """Hold `count` blocks, the first of them with the longest known prefix of `keys`.

        Returns:
            The blocks in order and how many hold their prefix already; None when there are not enough (nothing is taken then).
        """
        if not self.fits(count, keys):
            return None
        known = self._known(keys[:count])
        for block in known:
            self._idle.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1
        return known + [self._fresh() for _ in range(count - len(known))], len(known)

    def _known(self, keys: Sequence[bytes]) -> list[int]:
        """Blocks of the longest prefix that is there."""
        return [self._block_of[key] for key in takewhile(self._block_of.__contains__, keys)]

    def publish(self, block: int, key: bytes) -> None:
        """Say what a held block now holds. A second block of the same key stays private."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key], self._key_of[block] = block, key

    def release(self, blocks: Sequence[int]) -> None:
        """End one hold on each; what nobody holds is free, or idle if its prefix is known."""
        for block in reversed(blocks):  # the end of a prefix goes before its beginning
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._free.append(block)

    def _fresh(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._holders[block] = 1
        return block

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is lost, or in two states."""
        assert sorted([*self._free, *self._holders, *self._idle]) == list(range(self.blocks)), "a block is lost or in two states"
        assert all(count > 0 for count in self._holders.values()), "a hold count is not positive"
        assert {self._block_of[key]: key for key in self._block_of} == self._key_of, "a prefix is not where it is said to be"
        assert set(self._idle) <= set(self._key_of), "an idle block has no prefix"
