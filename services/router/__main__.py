"""`python -m services.router`: run the router until a signal."""

import sys

from services.router.settings import RouterSettings
from smoa.service import run


def main() -> None:
    """Entry point."""
    from services.router.app import build

    run("router", RouterSettings, "SMOA_ROUTER_", build, sys.argv[1:])


if __name__ == "__main__":
    main()
