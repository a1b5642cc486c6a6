"""`smoa demo`: eight demonstrations, each also an example of how SMoA's client is used."""

from services.demo.command import demo

__all__ = ["demo"]
