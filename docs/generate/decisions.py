"""The list of decisions, from their titles."""

from __future__ import annotations

from docs.generate.markdown import NOTE, ROOT


def decisions_page() -> str:
    """Every page of docs/decisions with its title."""
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    titles = [(page.name, page.read_text().splitlines()[0].removeprefix("# ")) for page in pages]
    why = "A decision that cost something has a page: what was measured, what was tried, and why it is so. They stay as written."
    return f"{NOTE}\n# Decisions\n\n{why}\n\n" + "".join(f"- [{title}]({name})\n" for name, title in titles)
