"""Which addresses only this machine reaches, and what stands for the authorities that it trusts. Pure."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

SYSTEM: Final = "system"
"""In the place of a file of authorities: the machine's own."""


def is_loopback(address: str) -> bool:
    """Whether host:port, or unix:PATH, is reached from this machine only; a name other than `localhost` may be anybody's."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]").lower()
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
