"""The forward pass in C++, for CPUs."""
