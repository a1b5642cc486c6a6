"""The port to where adapters' slots are."""

from __future__ import annotations

from typing import Protocol

from services.executor.adapters.mixture import LoadedAdapter


class Device(Protocol):
    """Holds adapters by key, ready to be mixed."""

    def slot_bytes_of(self, adapter: LoadedAdapter) -> int:
        """Bytes that an adapter takes in a slot."""

    def add_bases(self) -> None:
        """Have the LoRA-XS bases on the device: minutes, the first time that a machine serves a large model. Again is fine and takes none.
        May be called from any thread, beside anything else. Without it, the first adapter with cores that is placed waits for it.
        """

    def place(self, key: str, adapter: LoadedAdapter) -> None:
        """Put an adapter in a slot. May be called from any thread, one at a time."""

    def read(self, key: str) -> LoadedAdapter:
        """The adapter in a slot, as it was placed, as host tensors. May be called from any thread, but not while one is placed.

        Raises:
            KeyError: it is in none.
        """

    def evict(self, key: str) -> None:
        """Empty the slot of what was placed. Nobody runs a mixture of it any more."""
