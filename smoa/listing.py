"""Listings of the router, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar


class Page(Protocol):
    """An answer that may not be the last."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""


P = TypeVar("P", bound=Page)


async def pages(page_after: Callable[[str], Awaitable[P]]) -> AsyncIterator[P]:
    """Every page of a listing, asked for by the token of the one before; the first by an empty one."""
    token = ""
    while True:
        page = await page_after(token)
        yield page
        token = page.next_page_token
        if not token:
            return
