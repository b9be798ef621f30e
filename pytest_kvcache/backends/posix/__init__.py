"""Backends that keep objects in files: how files are opened, moved, synced, left."""
