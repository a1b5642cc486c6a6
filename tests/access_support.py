"""Callers, keys, tokens and certificates for tests."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from smoa.access.callers import entry_of, new_key
from smoa.access.principal import Principal

ISSUER, AUDIENCE = "https://issuer.test", "smoa"


def caller(name: str, tenants: str, roles: str) -> Principal:
    """Somebody; tenants and roles are separated by blanks."""
    return Principal(name, frozenset(tenants.split()), frozenset(roles.split()))


def callers_file(path: Path, *callers: Principal, certificates: dict[str, Principal] | None = None) -> dict[str, str]:
    """Write a file of callers; the key of each by their name."""
    keys = {one.name: new_key() for one in callers}
    entries = [entry_of(one, key=keys[one.name]) for one in callers]
    entries += [entry_of(one, certificate=name) for name, one in (certificates or {}).items()]
    path.write_text(json.dumps({"callers": entries}))
    return keys


class Issuer:
    """Signs tokens."""

    def __init__(self, key_id: str = "first") -> None:
        self.key_id, self.key = key_id, ec.generate_private_key(ec.SECP256R1())

    @property
    def public(self) -> dict[str, Any]:
        """Its key, as a JSON web key."""
        made: dict[str, Any] = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).to_jwk(self.key.public_key(), as_dict=True)
        return {**made, "kid": self.key_id, "alg": "ES256", "use": "sig"}

    def token(self, tenants: object = ("acme",), roles: object = ("infer",), **changes: Any) -> str:
        """A token; a claim that is None is left out."""
        now = time.time()
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "bot", "exp": now + 300, "tenants": tenants, "roles": roles, **changes}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.key, "ES256", {"kid": self.key_id})


def key_set(*issuers: Issuer) -> str:
    """A JSON web key set."""
    return json.dumps({"keys": [one.public for one in issuers]})


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.pem"
        made = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True).sign(self._key, hashes.SHA256())
        self.file.write_bytes(made.public_bytes(Encoding.PEM))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))

    def signed(self, name: str, *, host: str = "127.0.0.1", uri: str = "") -> Pair:
        """A certificate of a host or, with `uri`, of a service; written over the one of that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)] if uri else [x509.IPAddress(ip_address(host))]
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        made = builder.add_extension(x509.SubjectAlternativeName(names), False).sign(self._key, hashes.SHA256())
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.certificate.write_bytes(made.public_bytes(Encoding.PEM))
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pair
