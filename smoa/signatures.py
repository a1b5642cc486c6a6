"""Who made an adapter file: an Ed25519 signature (RFC 8032) in its manifest.

It is over the manifest's JSON, without the signature and what is as by default, with sorted keys and no blanks; the weights are in that by
their sha256. Whoever may write the store or register adapters cannot make one that an executor with a file of publishers runs.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from smoa.access.principal import EVERY_TENANT
from smoa.access.watched import Watched
from smoa.adapter import Adapter, Manifest, with_weights_named
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.strict_json import parse_json

_CONTEXT: Final = b"smoa adapter 1\n"
_MAKE_ONE: Final = "make one with `smoa access signing-key`"
_LOOK_EVERY_S: Final = 1.0
_KEY_BYTES: Final = 32


class Signer:
    """A private key."""

    def __init__(self, path: Path) -> None:
        """Read it: PEM, as `smoa access signing-key` or `openssl genpkey -algorithm ed25519` writes it.

        Raises:
            FailedPrecondition: the file cannot be read, or is no such key.
        """
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise FailedPrecondition(f"SMOA_SIGNING_KEY: {path} cannot be read ({error}); {_MAKE_ONE}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise FailedPrecondition(f"SMOA_SIGNING_KEY: {path} is no Ed25519 key; {_MAKE_ONE}")
        self._key = key

    def signed(self, adapter: Adapter) -> Adapter:
        """The adapter with a signature of this key in its manifest."""
        adapter = with_weights_named(adapter)
        signature = base64.b64encode(self._key.sign(_message(adapter.manifest))).decode()
        return dataclasses.replace(adapter, manifest=dataclasses.replace(adapter.manifest, signature=signature))


def signing_by(path: str) -> Callable[[Adapter], Adapter]:
    """What signs with the key of a file; without one, what leaves adapters as they are.

    Raises:
        FailedPrecondition: see `Signer`.
    """
    return Signer(Path(path)).signed if path else lambda adapter: adapter


def new_signing_key() -> tuple[bytes, str]:
    """A private key (PEM), and its public key as the file of publishers has it (base64)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, base64.b64encode(key.public_key().public_bytes_raw()).decode()


@dataclass(frozen=True)
class _Said:
    by_tenant: Mapping[str, list[Ed25519PublicKey]] = field(default_factory=dict)


class Publishers:
    """Whose signature a tenant's adapters need: a file, read again when it changes. Without one, nobody's."""

    def __init__(self, path: str) -> None:
        """Read it.

        Raises:
            FailedPrecondition: it cannot be read.
            InvalidArgument: it says nothing that can be understood.
        """
        self._path = path
        self._said = Watched([Path(path)], self._read, _LOOK_EVERY_S) if path else None

    def check(self, manifest: Manifest) -> None:
        """Refuse an adapter that none of its tenant's publishers has signed.

        Raises:
            InvalidArgument: naming the field.
        """
        if self._said is None:
            return
        by_tenant = self._said.now().by_tenant
        for key in (*by_tenant.get(manifest.tenant, ()), *by_tenant.get(EVERY_TENANT, ())):
            try:
                key.verify(base64.b64decode(manifest.signature, validate=True), _message(manifest))
            except (InvalidSignature, ValueError):  # the latter of base64
                continue
            return
        raise InvalidArgument(
            "manifest.signature",
            f"is of none of the publishers of {manifest.tenant}" if manifest.signature else "is empty, and this installation asks for one",
            "sign it with a key of theirs: `smoa adapter push --sign-with`",
        )

    def _read(self) -> _Said:
        try:
            return read_publishers(Path(self._path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"SMOA_PUBLISHERS: {self._path} cannot be read ({error}); correct it") from error


def read_publishers(text: str) -> _Said:
    """What a file says: `{"publishers": [{"tenants": ["acme"], "public_key": "..."}]}`.

    Raises:
        InvalidArgument: naming the entry and the field.
    """
    try:
        entries = parse_json(text)["publishers"]
        if not isinstance(entries, list):
            raise TypeError("publishers is no list")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument("publishers", f"is none that can be read ({error})", 'write {"publishers": [...]}') from error
    by_tenant: dict[str, list[Ed25519PublicKey]] = {}
    for place, entry in enumerate(entries):
        where = f"publishers[{place}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("tenants"), list):
            raise InvalidArgument(where, "is no publisher", "give tenants and public_key")
        try:
            raw = base64.b64decode(entry["public_key"], validate=True)
            if len(raw) != _KEY_BYTES:
                raise ValueError(f"{len(raw)} bytes")
            key = Ed25519PublicKey.from_public_bytes(raw)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"{where}.public_key", f"is no key ({error})", "write what `smoa access signing-key` printed") from error
        for tenant in entry["tenants"]:
            if not isinstance(tenant, str):
                raise InvalidArgument(f"{where}.tenants", "holds what is no text", "write names of tenants, or *")
            by_tenant.setdefault(tenant, []).append(key)
    return _Said(by_tenant)


def _message(manifest: Manifest) -> bytes:
    plain = {item.name: item.default for item in dataclasses.fields(manifest)} | {"scalings": {}}
    said = {name: value for name, value in dataclasses.asdict(manifest).items() if name != "signature" and value != plain[name]}
    return _CONTEXT + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
