"""Programs of ``--kv-exec-type=docker``: inside a container, and beside it."""
