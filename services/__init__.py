"""The three services, and what runs them on one machine."""
