"""Texts to vectors: one port, and what is behind it."""
