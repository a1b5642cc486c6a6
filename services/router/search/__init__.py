"""The nearest adapters of a query: in memory, or on a Qdrant server."""
