"""What must be so before anything is imported."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is first imported, by whoever that is

for service in ("ROUTER", "EXECUTOR"):  # a spool reserves its room on the disk, and the tests start some two hundred
    os.environ.setdefault(f"SMOA_{service}_SPOOL_BYTES", str(8 * 2**20))
