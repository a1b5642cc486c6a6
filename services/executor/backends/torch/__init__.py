"""The forward pass in torch: for GPUs, and the reference for the native one."""
