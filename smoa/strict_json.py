"""JSON from others: whatever is wrong with it is a ValueError. Pure."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What a text says. Numbers may be NaN or infinite, as Python reads them.

    Raises:
        ValueError: it is not JSON, or nests too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
