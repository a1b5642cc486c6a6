"""The port to where adapters' slots are."""

from __future__ import annotations

from typing import Protocol

from services.executor.adapters.mixture import LoadedAdapter


class Device(Protocol):
    """Where adapters' slots are."""

    def slot_bytes_of(self, adapter: LoadedAdapter) -> int:
        """Bytes that an adapter takes in a device slot."""

    def place(self, adapter: LoadedAdapter) -> LoadedAdapter:
        """An adapter in a device slot, ready for `mix`. May be called from any thread."""

    def evict(self, adapter: LoadedAdapter) -> None:
        """Empty the slot of what `place` gave. Nobody runs a mixture of it any more."""
