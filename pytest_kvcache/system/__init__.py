"""What this machine's kernel says: mounts, devices, control groups, clocks, preloads."""
