"""`python -m services.router`: run the router until a signal."""

import os
import sys

# One thread for each call of numpy and faiss: what is multiplied here is small, and threads that wait for more of it take the other core
# from training, from Kafka and from the next query. Before either is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from services.router.settings import RouterSettings
from smoa.service import run


def main() -> None:
    """Entry point."""
    from services.router.app import build

    run("router", RouterSettings, "SMOA_ROUTER_", build, sys.argv[1:])


if __name__ == "__main__":
    main()
