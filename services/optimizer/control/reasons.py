"""How the reasons of retirements begin that are the optimizer's doing; the registry writes the last three."""

from __future__ import annotations

from typing import Final

PRUNED: Final = "pruned: "
MERGED: Final = "merged into "
ROLLED_BACK: Final = "rolled back: "
SUPERSEDED: Final = "superseded by "
TAKEN_AWAY: Final = (PRUNED, MERGED, ROLLED_BACK, SUPERSEDED)
