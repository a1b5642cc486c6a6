"""The executor: runs weighted mixtures of adapters on one base model, a different mixture on every row."""
