"""What adapters and compositions there are, and every change of it."""
