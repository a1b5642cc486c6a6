"""Envoy's external processor: routes a request that passes by, and learns what its answer took."""
