"""Bounds that the contracts state and more than one service checks."""

MAX_STAGES = 8
"""Stages of a pipeline."""
MAX_STAGE_ADAPTERS = 32
"""Adapters of one mixture."""
MAX_WEIGHT = 4.0
"""Most that an adapter's weight may be, either way."""
