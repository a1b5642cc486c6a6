"""Writes docs/reference from the code: `make docs-reference`. A unit test fails when the pages are stale."""
