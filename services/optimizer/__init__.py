"""The optimizer: counts outcomes exactly once, and merges and prunes the library through the registry."""
