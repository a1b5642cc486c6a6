"""The JSON files of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path

from smoa.errors import FailedPrecondition


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        FailedPrecondition: it holds something else.
    """
    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FailedPrecondition(f"base_model: {path} cannot be read ({error}); fetch all files of the model again") from error
    if not isinstance(loaded, dict):
        raise FailedPrecondition(f"base_model: {path} holds no JSON object; fetch all files of the model again")
    return loaded
