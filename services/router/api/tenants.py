"""Whose things a request asks for."""

from __future__ import annotations

from typing import Protocol

from smoa.identifiers import checked_tenant


class OfTenants(Protocol):
    """A request that may be for every tenant; whoever may say so is held to the contract before."""

    @property
    def tenant(self) -> str:
        """The one that it is for otherwise."""

    @property
    def all_tenants(self) -> bool:
        """Whether it is for every one."""


def tenant_of(request: OfTenants) -> str | None:
    """The tenant that a request is for; None of every one's.

    Raises:
        InvalidArgument: it can be nobody's name.
    """
    return None if request.all_tenants else checked_tenant(request.tenant)
