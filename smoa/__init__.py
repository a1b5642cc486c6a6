"""SMoA: sparse mixture of adapters. Shared library: contracts, client, adapter files, events, settings, command line."""

__version__ = "0.1.0"
