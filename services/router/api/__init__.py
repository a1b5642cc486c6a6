"""gRPC to the domain and back."""
