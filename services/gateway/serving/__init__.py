"""What a request means and how it is answered: which decision, which executor, which texts."""
