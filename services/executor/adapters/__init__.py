"""Adapters: from the store to host memory to slots, what a mixture of them is, and how one is trained."""
