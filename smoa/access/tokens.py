"""Callers by JSON web token (RFC 7519), signed by an issuer whose public keys are a file or an address (a JSON web key set, RFC 7517)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import jwt

from smoa.access.callers import checked_principal
from smoa.access.principal import ROLES, Principal
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache
from smoa.errors import InvalidArgument, Unauthenticated, Unavailable
from smoa.strict_json import parse_json
from smoa.tasks import begin, end

_log = logging.getLogger(__name__)
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Those with a key pair: a key that can be published cannot sign."""
_LEEWAY_S: Final = 30.0
_FRESH_S: Final = 300.0
"""After so long, keys are read again, beside the calls."""
_AGAIN_S: Final = 10.0
"""Tokens by keys that nobody knows make them read again no sooner."""
_AGAIN_WITHOUT_S: Final = 1.0
_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 4 << 20
MAX_TOKEN_CHARACTERS: Final = 8192
REMEDY: Final = "send `authorization: Bearer TOKEN` with one that the issuer made for this service"


def _read(where: str) -> bytes:
    """A file, or what is at an address."""
    if "://" not in where:
        return Path(where).read_bytes()
    with urlopen(where, timeout=_TIMEOUT_S) as answer:
        return bytes(answer.read(_MOST_BYTES + 1))


def check_keys_address(where: str) -> None:
    """Refuse keys that anybody on the way could replace.

    Raises:
        InvalidArgument: an address that is neither https nor of this machine.
    """
    parts = urlsplit(where)
    if "://" in where and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        raise InvalidArgument("SMOA_TOKEN_KEYS", f"{where!r} is not safe from others on the way", "use a file or an https:// address")


class SigningKeys:
    """The issuer's public keys by id, the last good ones while new ones cannot be had."""

    def __init__(self, where: str, read: Callable[[str], bytes] = _read, clock_s: Callable[[], float] = time.monotonic) -> None:
        check_keys_address(where)
        self._where, self._read, self._clock_s = where, read, clock_s
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_s = -_FRESH_S
        self._reading: asyncio.Task[None] | None = None

    async def key(self, key_id: str | None) -> jwt.PyJWK:
        """The key of that id; the only one, if a token names none.

        Raises:
            Unauthenticated: it has none of that id.
            Unavailable: no keys could be read yet.
        """
        age_s = self._clock_s() - self._read_s
        if self._find(key_id) is None and age_s > (_AGAIN_S if self._keys else _AGAIN_WITHOUT_S):
            await asyncio.shield(self._begun())
        elif age_s > _FRESH_S:
            self._begun()
        if not self._keys:
            raise Unavailable("token: the issuer's keys cannot be read, so nobody's token can be checked; see the server's log")
        if (found := self._find(key_id)) is None:
            raise Unauthenticated(f"token: is signed by a key that its issuer does not name; {REMEDY}")
        return found

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            await end(self._reading)

    def _begun(self) -> asyncio.Task[None]:
        """One reading at a time, whoever waits for it."""
        if self._reading is None or self._reading.done():
            self._reading = begin(self._read_again(), "signing-keys")
        return self._reading

    def _find(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def _read_again(self) -> None:
        self._read_s = self._clock_s()
        try:
            read = parse_json(await asyncio.wait_for(asyncio.to_thread(self._read, self._where), 2 * _TIMEOUT_S))
            keys = {one.key_id: one for one in jwt.PyJWKSet.from_dict(read).keys if one.algorithm_name in _ALGORITHMS}
        except (OSError, URLError, TimeoutError, ValueError, AttributeError, jwt.PyJWTError) as error:
            _log.error("the keys of %s cannot be read; the last ones stay: %s", self._where, error)
            return
        self._keys = keys


class Tokens:
    """Who a token says one is. Checked once, and then known until it ends."""

    def __init__(
        self, keys: SigningKeys, issuer: str, audience: str, tenants: str, roles: str, clock_s: Callable[[], float] = time.time
    ) -> None:
        """`tenants` and `roles` are the claims that list them."""
        self._keys, self._issuer, self._audience, self._tenants, self._roles = keys, issuer, audience, tenants, roles
        self._clock_s = clock_s
        self._known: BoundedCache[str, tuple[Principal, float]] = BoundedCache(_KEPT_BYTES)

    async def principal(self, token: str) -> Principal:
        """Who that is.

        Raises:
            Unauthenticated: it is forged, of another issuer, for another service, over, or says nothing that can be understood.
        """
        if (known := self._known.get(token)) is not None:
            if self._clock_s() < known[1]:
                return known[0]
            self._known.drop(token)
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise Unauthenticated(f"token: has over {MAX_TOKEN_CHARACTERS:,} characters; {REMEDY}")
        try:
            header = jwt.get_unverified_header(token)
            key = await self._keys.key(header.get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, RecursionError, ValueError) as error:
            raise Unauthenticated(f"token: {str(error)[:200]}; {REMEDY}") from error
        principal = self._said(claims)
        ends_s = float(claims["exp"]) + _LEEWAY_S
        self._known.put(token, (principal, ends_s), ENTRY_BYTES + 2 * len(token))
        return principal

    def _said(self, claims: dict[str, Any]) -> Principal:
        tenants, roles = (claims.get(name, []) for name in (self._tenants, self._roles))
        for name, listed in ((self._tenants, tenants), (self._roles, roles)):
            if not isinstance(listed, list):
                raise Unauthenticated(f"token: its claim {name} is no list; have the issuer write one")
        try:
            ours = [role for role in roles if isinstance(role, str) and role in ROLES]  # an issuer has others', too
            return checked_principal(str(claims["sub"])[:80], tenants, ours, "token.")
        except InvalidArgument as error:
            raise Unauthenticated(str(error)) from error

    async def close(self) -> None:
        """Stop reading keys."""
        await self._keys.close()
