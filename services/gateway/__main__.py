"""`python -m services.gateway`: run the gateway until a signal."""

import sys

from services.gateway.settings import GatewaySettings
from smoa.service import run


def main() -> None:
    """Entry point."""
    from services.gateway.app import build

    run("gateway", GatewaySettings, "SMOA_GATEWAY_", build, sys.argv[1:])


if __name__ == "__main__":
    main()
