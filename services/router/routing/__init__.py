"""From a query to a decision."""
