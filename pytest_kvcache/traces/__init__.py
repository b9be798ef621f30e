"""Recorded requests: formats, partition over ranks, reuse."""
