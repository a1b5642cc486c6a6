"""The page of OpenAI's fields, from the table that requests are held to."""

from __future__ import annotations

from docs.generate.markdown import NOTE, table
from services.gateway.api.application import ROUTES
from services.gateway.api.fields import EVERY


def openai_page() -> str:
    """For each path, what becomes of every field of OpenAI's."""
    parts = [
        NOTE,
        "# OpenAI's interface",
        "What the [gateway](../how-to/gateway.md) serves of it. A field that is not here is refused by its name, as OpenAI does; one that "
        "is left alone is told of in the answer's `smoa-warning` header. `null` is as if a field were not there.\n",
        table(
            ("path", "method", "roles, where callers are known"),
            [(f"`{path}`", method, ", ".join(sorted(roles))) for path, (method, roles) in ROUTES.items()],
        ),
        "",
    ]
    for fields in EVERY:
        rows = [(f"`{name}`", "served", note) for name, note in fields.served.items()]
        rows += [(f"`{name}`", "no effect, and a warning", note) for name, note in fields.ignored.items()]
        rows += [(f"`{name}`", "refused", f"{note}{_harmless(fields.harmless.get(name, ()))}") for name, note in fields.refused.items()]
        parts += [f"## {fields.path}", table(("field", "here", ""), rows), ""]
    return "\n".join(parts)


def _harmless(values: tuple[object, ...]) -> str:
    return f" (taken: {', '.join(f'`{value}`' for value in values)})" if values else ""
