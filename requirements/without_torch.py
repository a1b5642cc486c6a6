"""Leave torch out of a file of requirements, and what its build for CUDA brings: which build it is, the image's builder decides.

python -m requirements.without_torch FROM TO
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_LEFT_OUT = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==")


def without_torch(text: str) -> str:
    """The text without the blocks of torch and its device's libraries; a block is a requirement and its hashes."""
    blocks = re.split(r"\n(?=\S)", text.rstrip("\n"))
    return "\n".join(block for block in blocks if not _LEFT_OUT.match(block)) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(without_torch(Path(sys.argv[1]).read_text()))
