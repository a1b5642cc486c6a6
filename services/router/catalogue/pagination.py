"""Pages of a listing: their size, and tokens that name where the next one begins and which listing it is of. Pure."""

from __future__ import annotations

import base64
import hashlib
import json

from services.router.catalogue.records import Scope
from smoa.errors import InvalidArgument
from smoa.strict_json import parse_json

MAX_PAGE = 1000


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
