"""The arithmetic: one forward pass over a batch in which every sequence has its own mixture."""
