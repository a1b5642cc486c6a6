"""Settings of who may call, the same for every service of an installation."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class CallersSettings:
    """Of every port; read from the keys in the fields' metadata."""

    insecure: bool = field(default=False, metadata={"key": "SMOA_INSECURE"})
    """Listen on other than loopback addresses although anybody who reaches the port may do everything there."""
    callers: str = field(default="", metadata={"key": "SMOA_CALLERS"})
    """File of who calls with a key or a certificate, and what they may do: `smoa access` writes it."""
    token_issuer: str = field(default="", metadata={"key": "SMOA_TOKEN_ISSUER"})
    """Who issues the JSON web tokens of callers (`iss`); empty: none are taken."""
    token_audience: str = field(default="smoa", metadata={"key": "SMOA_TOKEN_AUDIENCE"})
    """Whom they are for (`aud`)."""
    token_keys: str = field(default="", metadata={"key": "SMOA_TOKEN_KEYS"})
    """The issuer's public keys, a JSON web key set: a file, or its https:// address."""
    token_tenants: str = field(default="tenants", metadata={"key": "SMOA_TOKEN_TENANTS"})
    """The claim that lists a caller's tenants; `*` is every one."""
    token_roles: str = field(default="roles", metadata={"key": "SMOA_TOKEN_ROLES"})
    """The claim that lists a caller's roles."""
    tls_certificate: str = field(default="", metadata={"key": "SMOA_TLS_CERTIFICATE"})
    """File of the service's certificate and those above it; read again when it changes. Empty: no TLS."""
    tls_key: str = field(default="", metadata={"key": "SMOA_TLS_KEY"})
    """File of its private key."""
    tls_client_ca: str = field(default="", metadata={"key": "SMOA_TLS_CLIENT_CA"})
    """File of the authorities one of which must have signed a caller's certificate; empty: callers need none."""


@dataclass(frozen=True, kw_only=True)
class AccessSettings(CallersSettings):
    """Of a service that is called by gRPC."""

    health_address: str = ""
    """host:port of a server that answers health checks only, without TLS and whoever asks, as Kubernetes' probes do; empty: none."""
    max_calls: int = field(default=1000, metadata={"key": "SMOA_MAX_CALLS", "least": 4})
    """Calls that are answered at once, streams among them; of one caller a quarter of them, where callers are known."""
    publishers: str = field(default="", metadata={"key": "SMOA_PUBLISHERS"})
    """File of the public keys one of which must have signed a tenant's adapter; read again when it changes. Empty: none need be signed."""
    calls_per_s: float = field(default=0.0, metadata={"key": "SMOA_CALLS_PER_S", "least": 0.0})
    """Calls a second of one caller, where callers are known; each query of a batch counts. 0: no limit."""
    changes_per_s: float = field(default=1000.0, metadata={"key": "SMOA_CHANGES_PER_S", "least": 0.0})
    """Changes a second of one caller; each adapter of an import counts, and an import that is over it goes slower. 0: no limit."""
