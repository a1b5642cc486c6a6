"""The `smoa` command line. Commands that need a service's code join through the `smoa.commands` entry points."""

from smoa.cli.main import main

__all__ = ["main"]
