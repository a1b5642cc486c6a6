"""Bytes of anybody into every parser that stands where bytes enter, guided by what they reach: `make fuzz`."""
