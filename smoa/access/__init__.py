"""Who calls, and what that one may do: held to the rights that `proto/` states beside each method, at one point, for every service."""
