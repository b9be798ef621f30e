"""Reasons to distrust a trial, or a case."""
