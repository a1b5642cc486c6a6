"""What outcomes teach: posteriors, and the ranker that is trained on them."""
