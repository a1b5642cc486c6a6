"""Callers that a file names: by the hash of a key of theirs, or by a name in their certificate.

For small installations, and for services.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from smoa.access.principal import EVERY_TENANT, ROLES, Principal
from smoa.access.watched import Watched
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.identifiers import TENANT_PATTERN
from smoa.strict_json import parse_json

_LOOK_EVERY_S: Final = 1.0
_KEY_PREFIX: Final = "smoa_"


@dataclass(frozen=True)
class Callers:
    """What the file says."""

    by_key: Mapping[str, Principal] = field(default_factory=dict)
    """By the SHA-256 (hex) of a key: it is drawn at random, so that nothing slower is needed."""
    by_certificate: Mapping[str, Principal] = field(default_factory=dict)
    """By a SPIFFE id, or another subject alternative name."""


def new_key() -> str:
    """A key of 256 random bits."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """As it is kept."""
    return hashlib.sha256(key.encode()).hexdigest()


def checked_principal(name: str, tenants: Sequence[str], roles: Sequence[str], field: str = "") -> Principal:
    """Somebody, as a file or a token says.

    Raises:
        InvalidArgument: a tenant or a role that cannot be one.
    """
    for tenant in tenants:
        if tenant != EVERY_TENANT and not (isinstance(tenant, str) and TENANT_PATTERN.fullmatch(tenant)):
            raise InvalidArgument(f"{field}tenants", f"{tenant!r:.80} is not a tenant's name", f"use names of tenants, or {EVERY_TENANT}")
    for role in roles:
        if not (isinstance(role, str) and role in ROLES):
            raise InvalidArgument(f"{field}roles", f"{role!r:.80} is unknown", f"use {', '.join(sorted(ROLES))}")
    return Principal(name, frozenset(tenants), frozenset(roles))


def read_callers(text: str) -> Callers:
    """What a file says.

    Raises:
        InvalidArgument: naming the entry and the field.
    """
    try:
        entries = parse_json(text)["callers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument("callers", f"is not what `smoa access` writes ({error})", 'write {"callers": [...]}') from error
    by_key, by_certificate = dict[str, Principal](), dict[str, Principal]()
    for place, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        where = f"callers[{place}]"
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name, []), list) for name in ("tenants", "roles")):
            raise InvalidArgument(where, "is no caller", "give name, tenants, roles, and key_sha256 or certificate")
        known, certificate = entry.get("key_sha256", ""), entry.get("certificate", "")
        if not isinstance(known, str) or not isinstance(certificate, str) or bool(known) == bool(certificate):
            raise InvalidArgument(where, "is known by nothing, or by two things", "give key_sha256 or certificate")
        principal = checked_principal(str(entry.get("name", place)), entry.get("tenants", []), entry.get("roles", []), f"{where}.")
        (by_key if known else by_certificate)[known or certificate] = principal
    return Callers(by_key, by_certificate)


class CallersFile:
    """The file, read again when it changes; one that cannot be read leaves what was known."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            FailedPrecondition: there is none.
            InvalidArgument: it says nothing that can be understood.
        """
        self._path = path
        self._said = Watched([path], self._read, _LOOK_EVERY_S)

    def by_key(self, key: str) -> Principal | None:
        """Whose key that is."""
        return self._said.now().by_key.get(hash_of(key))

    def by_certificate(self, names: Sequence[str]) -> Principal | None:
        """Whose certificate has these names: of the first that is known."""
        known = self._said.now().by_certificate
        return next((known[name] for name in names if name in known), None)

    def _read(self) -> Callers:
        """A file of a few kilobytes is read on the loop."""
        try:
            return read_callers(self._path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"SMOA_CALLERS: {self._path} cannot be read ({error}); write it with `smoa access add`") from error


def entry_of(principal: Principal, *, key: str = "", certificate: str = "") -> dict[str, Any]:
    """A caller as the file has it."""
    known = {"key_sha256": hash_of(key)} if key else {"certificate": certificate}
    return {"name": principal.name, "tenants": sorted(principal.tenants), "roles": sorted(principal.roles), **known}
