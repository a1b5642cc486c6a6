"""Who calls. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from smoa.errors import InvalidArgument, PermissionDenied
from smoa.identifiers import DEFAULT_TENANT
from smoa.v1.access_pb2 import Role

EVERY_TENANT: Final = "*"
_PREFIX: Final = "ROLE_"
ROLES: Final = frozenset(name.removeprefix(_PREFIX).lower() for name, number in Role.items() if number)
"""Their names, as tokens and files write them: `infer`, `library`, `publish`, `operate`, `optimizer`, `executor`."""


SERVICES: Final = frozenset({"optimizer", "executor", "gateway"})
"""Roles of services."""
SEE_ALL: Final = frozenset({"operate", "optimizer", "executor"})


def role_name(number: int) -> str:
    """A role of the contract as tokens and files write it."""
    return Role.Name(number).removeprefix(_PREFIX).lower()


@dataclass(frozen=True)
class Principal:
    """Somebody, the tenants that are theirs (`*`: every one) and their roles."""

    name: str
    tenants: frozenset[str]
    roles: frozenset[str]

    @property
    def of_every_tenant(self) -> bool:
        """Whether every tenant is theirs."""
        return EVERY_TENANT in self.tenants

    def sees(self, tenant: str) -> bool:
        """Whether a tenant's things are shown to them: of services and operators, everybody's."""
        return self.of_every_tenant or tenant in self.tenants or self.may(SEE_ALL)

    def may(self, roles: frozenset[str]) -> bool:
        """Whether they have one of the roles."""
        return not self.roles.isdisjoint(roles)

    def tenant(self, asked: str, field: str = "tenant") -> str:
        """The tenant that a call is for; an empty one means the only one they have, or `public` if all are theirs.

        Raises:
            InvalidArgument: it is not said which of several.
            PermissionDenied: it is another's.
        """
        if self.of_every_tenant:
            return asked or DEFAULT_TENANT
        if not asked:
            if len(self.tenants) != 1:
                raise InvalidArgument(field, "is empty", f"name one of yours: {', '.join(sorted(self.tenants))}")
            return next(iter(self.tenants))
        if asked not in self.tenants:
            raise PermissionDenied(f"{field}: {asked[:80]!r} is not a tenant of {self.name}; name one of yours, or ask for a right to it")
        return asked

    def require(self, roles: frozenset[str], what: str) -> None:
        """Refuse who has none of the roles.

        Raises:
            PermissionDenied: naming what was wanted and by which role it is allowed.
        """
        if not self.may(roles):
            raise PermissionDenied(f"{what}: needs the role {' or '.join(sorted(roles))}, which {self.name} does not have; ask for it")

    def acting_for(self, name: str, tenants: Iterable[str], roles: Iterable[str]) -> Principal:
        """Somebody for whom they call: with that one's tenants and roles, as far as they themselves have them."""
        theirs = frozenset(tenants)
        if not self.of_every_tenant:
            theirs = self.tenants if EVERY_TENANT in theirs else theirs & self.tenants
        return Principal(name, theirs, self.roles & frozenset(roles) - SERVICES)


ANYBODY: Final = Principal("anybody here", frozenset({EVERY_TENANT}), ROLES)
"""Who calls where nobody is asked who they are, and the process itself."""
_caller: ContextVar[Principal] = ContextVar("caller", default=ANYBODY)


def caller() -> Principal:
    """Who made the call that is being answered; the process itself where it is none."""
    return _caller.get()


def known_caller() -> str:
    """Their name; empty where nobody is asked for it, and of the process itself."""
    return "" if caller() is ANYBODY else caller().name


def answering(principal: Principal) -> None:
    """From here on, in this task, a call of theirs is answered."""
    _caller.set(principal)
