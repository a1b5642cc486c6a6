"""What is worth doing: prune, merge, trials, gaps. Pure."""
