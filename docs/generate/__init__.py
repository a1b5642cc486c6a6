"""Writes docs/reference from the code, and the list of decisions: `make docs-reference`. A unit test fails when the pages are stale."""
