"""The one point where it is found out who calls a method, and whether they may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message

from smoa.access.addresses import is_loopback
from smoa.access.callers import CallersFile
from smoa.access.principal import ANYBODY, Principal, answering
from smoa.access.rights import Rights, rights_of
from smoa.access.settings import CallersSettings
from smoa.access.tokens import REMEDY, SigningKeys, Tokens
from smoa.errors import FailedPrecondition, InvalidArgument, Unauthenticated
from smoa.rules import check_rules
from smoa.v1.access_pb2 import Represented

NAMES: Final = "x509_subject_alternative_name"
"""Key of a certificate's names in a call's `auth_context`."""
REPRESENTED: Final = "smoa-for-bin"
"""Key of what a gateway says of whom it calls for: a `Represented`."""
_SCHEME: Final = "bearer "


_GATEWAYS: Final = frozenset({"gateway"})


class Call(Protocol):
    """What gRPC knows of a call."""

    def invocation_metadata(self) -> Any:
        """Pairs of names and values."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Of the caller's certificate, once it was checked."""


class Admitted(NamedTuple):
    """A call that may go on, and what each of its requests is held to."""

    principal: Principal
    rights: Rights

    def check(self, request: Message) -> None:
        """Hold a request to the contract's rules and the caller's rights; an empty tenant becomes the caller's.

        Raises:
            InvalidArgument: it breaks a rule, or does not say which of several tenants is meant.
            PermissionDenied: it is for another's tenant, or gives a field that is not the caller's to give.
        """
        check_rules(request)
        self.rights.check_request(self.principal, request)


class Access:
    """Callers by key or certificate, and by token. With neither, everybody may do everything."""

    def __init__(self, callers: CallersFile | None = None, tokens: Tokens | None = None) -> None:
        self._callers, self._tokens = callers, tokens

    @classmethod
    def of(cls, settings: CallersSettings) -> Access:
        """As the settings say.

        Raises:
            InvalidArgument: an issuer without keys, or the other way round.
            FailedPrecondition: a file that cannot be read.
        """
        if bool(settings.token_issuer) != bool(settings.token_keys):
            missing = "SMOA_TOKEN_KEYS" if settings.token_issuer else "SMOA_TOKEN_ISSUER"
            raise InvalidArgument(missing, "is empty", "tokens need an issuer and its keys; name both")
        tokens = None
        if settings.token_issuer:
            keys = SigningKeys(settings.token_keys)
            tokens = Tokens(keys, settings.token_issuer, settings.token_audience, settings.token_tenants, settings.token_roles)
        return cls(CallersFile(Path(settings.callers)) if settings.callers else None, tokens)

    @property
    def asks(self) -> bool:
        """Whether anybody is asked who they are."""
        return self._callers is not None or self._tokens is not None

    def check_address(self, field: str, address: str, may: str, *, insecure: bool) -> None:
        """Refuse to listen where others than this machine could come and nobody would ask them who they are, unless this is wanted.

        Raises:
            FailedPrecondition: naming the field, and what anybody may do there.
        """
        if not (self.asks or insecure or is_loopback(address)):
            raise FailedPrecondition(
                f"{field}: {address} can be reached from elsewhere, and nothing says who may {may}; name callers (SMOA_CALLERS) or an "
                "issuer of tokens (SMOA_TOKEN_ISSUER), or say that everybody may do everything there (SMOA_INSECURE=true)"
            )

    async def admit(self, method: str, call: Call) -> Admitted:
        """Find out who calls, from here on `caller()` of this task, and whether they may call the method.

        Raises:
            Unauthenticated: nobody knows who it is.
            PermissionDenied: they may not call the method.
        """
        rights = rights_of(method)
        principal = self._meant(await self._caller(call), call)
        rights.check_call(principal)
        answering(principal)
        return Admitted(principal, rights)

    async def admit_to(self, what: str, roles: frozenset[str], call: Call) -> Principal:
        """Find out who asks for something that is no method, and whether they may.

        Raises:
            Unauthenticated: nobody knows who it is.
            PermissionDenied: they have none of the roles.
        """
        principal = await self._caller(call)
        principal.require(roles, what)
        return principal

    def _meant(self, principal: Principal, call: Call) -> Principal:
        """Whom a caller calls for, if it says so and is a gateway; where nobody is asked, everybody is anybody."""
        said = next((value for name, value in call.invocation_metadata() or () if name == REPRESENTED), None)
        if said is None or not self.asks:
            return principal
        principal.require(_GATEWAYS, REPRESENTED)
        try:
            represented = Represented.FromString(said)
        except DecodeError as error:
            raise InvalidArgument(REPRESENTED, "is no `Represented`", "make it by proto/smoa/v1/access.proto") from error
        return principal.acting_for(represented.name, represented.tenants, represented.roles)

    async def _caller(self, call: Call) -> Principal:
        if not self.asks:
            return ANYBODY
        if token := _token(call.invocation_metadata()):
            if self._tokens is not None and token.count(".") == 2:
                return await self._tokens.principal(token)
            found = self._callers.by_key(token) if self._callers is not None else None
            if found is None:
                raise Unauthenticated(
                    f"key: nobody's here; {REMEDY if self._callers is None else 'send the one that `smoa access add` printed'}"
                )
            return found
        names = [name.decode(errors="replace") for name in call.auth_context().get(NAMES, ())]
        found = self._callers.by_certificate(names) if names and self._callers is not None else None
        if found is None:
            shown = f"nobody here is known by {', '.join(names)[:200]}" if names else "nothing says who calls"
            raise Unauthenticated(
                f"authorization: {shown}; send `authorization: Bearer` with a key or a token, or a certificate that is known"
            )
        return found

    async def close(self) -> None:
        """Stop reading keys."""
        if self._tokens is not None:
            await self._tokens.close()


def _token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for name, value in metadata or ():
        if name == "authorization" and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            return value[len(_SCHEME) :].strip()
    return ""
