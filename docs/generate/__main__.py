"""`python -m docs.generate`: write docs/reference, and the list of decisions."""

from __future__ import annotations

from docs.generate.commands import commands_page
from docs.generate.decisions import decisions_page
from docs.generate.errors import errors_page
from docs.generate.markdown import ROOT
from docs.generate.metrics import metrics_page
from docs.generate.openai import openai_page
from docs.generate.protos import protos_page
from docs.generate.settings import settings_page
from docs.generate.topic_rights import topic_rights_page

FOLDER = ROOT / "docs"
PAGES = {
    "reference/settings.md": settings_page,
    "reference/commands.md": commands_page,
    "reference/metrics.md": metrics_page,
    "reference/errors.md": errors_page,
    "reference/protos.md": protos_page,
    "reference/topic-rights.md": topic_rights_page,
    "reference/openai.md": openai_page,
    "decisions/index.md": decisions_page,
}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(page())
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
