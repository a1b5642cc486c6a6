"""Passes over the library: the only room that acts."""
