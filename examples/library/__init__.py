"""The example library: small trained adapters, their data generators and the recipe that rebuilds them."""

from pathlib import Path

ADAPTERS = Path(__file__).parent / "adapters"
"""Folder of the committed weights."""
