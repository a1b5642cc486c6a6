"""Kafka and Faust: events joined and counted once, and what is kept of them."""
