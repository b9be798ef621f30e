"""Reasons to distrust a trial."""

from pytest_kvcache.verdicts.trial import evaluate_trial, idle_error

__all__ = ["evaluate_trial", "idle_error"]
