"""`python -m docs.generate`: write docs/reference."""

from __future__ import annotations

from docs.generate.commands import commands_page
from docs.generate.errors import errors_page
from docs.generate.markdown import ROOT
from docs.generate.metrics import metrics_page
from docs.generate.protos import protos_page
from docs.generate.settings import settings_page

FOLDER = ROOT / "docs" / "reference"
PAGES = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
    "protos.md": protos_page,
}


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
        print(f"wrote {(FOLDER / name).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
