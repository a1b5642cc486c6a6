"""The ways to choose adapters for a query, one in each file."""
