"""How processes with threads of their own share the cores of one machine."""

from typing import Final

WAIT_POLICY: Final = "OMP_WAIT_POLICY"
PASSIVE: Final = "PASSIVE"
"""OpenMP threads that wait for each other sleep at once. By default they spin for milliseconds, some hundred times a training step: while
one spins on a core, the one it waits for does not get it: a training step on two busy cores took five times as long and more.
libgomp reads it when it is loaded: set it before torch is imported."""
