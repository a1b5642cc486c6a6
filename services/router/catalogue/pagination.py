"""Pages of a listing: their size, and tokens that name where the next one begins and which listing it is of."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from services.router.catalogue.port import Document
from services.router.catalogue.records import AdapterRecord, Scope
from smoa.errors import InvalidArgument
from smoa.strict_json import parse_json

MAX_PAGE = 1000
_AT_ONCE: Final = 256


class Documents(Protocol):
    """What keeps documents."""

    async def list_documents(self, kind: str, tenant: str | None, after: str, limit: int, states: Sequence[str] = ()) -> list[Document]:
        """See `Catalogue`."""


async def every_document(source: Documents, kind: str) -> AsyncIterator[Document]:
    """All of a kind, of every tenant, by id."""
    last = ""
    while page := await source.list_documents(kind, None, last, _AT_ONCE):
        last = page[-1].document_id
        for one in page:
            yield one


class Adapters(Protocol):
    """What keeps adapters."""

    async def scroll(self, scope: Scope, after: str, limit: int) -> list[AdapterRecord]:
        """See `Catalogue`."""


async def pages_of_adapters(source: Adapters, scope: Scope, page_size: int) -> AsyncIterator[list[AdapterRecord]]:
    """All of a scope, by id, so many at a time."""
    last = ""
    while page := await source.scroll(scope, last, page_size):
        last = page[-1].adapter_id
        yield page


async def page_of_documents(
    source: Documents, kind: str, scope: Scope, page_size: int, page_token: str, states: Sequence[str] = ()
) -> tuple[list[Document], str]:
    """A page by id of the scope's tenant, or, for None, of all, and the token of the next; the scope names the listing.

    Raises:
        InvalidArgument: a size out of bounds, or a token of another listing.
    """
    size, after = page_size_of(page_size), page_after(page_token, scope)
    found = await source.list_documents(kind, scope.tenant, after, size + 1, states)
    return found[:size], page_token_of(found[size - 1].document_id, scope) if len(found) > size else ""


def page_size_of(size: int) -> int:
    """The page size, 100 when it is 0.

    Raises:
        InvalidArgument: out of bounds.
    """
    if not 0 <= size <= MAX_PAGE:
        raise InvalidArgument("page_size", f"{size} is outside 1..{MAX_PAGE}", "ask for a smaller page")
    return size or 100


def _listing(scope: Scope) -> str:
    return hashlib.sha256(repr(scope).encode()).hexdigest()[:16]


def page_token_of(last_id: str, scope: Scope) -> str:
    """A token that goes on after an id, good for this listing only."""
    return base64.urlsafe_b64encode(json.dumps([last_id, _listing(scope)]).encode()).decode()


def page_after(token: str, scope: Scope) -> str:
    """The id that a token goes on after; empty for no token.

    Raises:
        InvalidArgument: not one of ours, or of another listing.
    """
    if not token:
        return ""
    try:
        last_id, listing = parse_json(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError) as error:
        raise InvalidArgument("page_token", "is not one this server gave", "start again without a token") from error
    if listing != _listing(scope):
        raise InvalidArgument("page_token", "belongs to another listing", "keep tenant and filters the same from page to page")
    return str(last_id)
