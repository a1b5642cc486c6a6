"""The loop over the batch: who runs next, on which cache blocks, and how tokens become text."""
