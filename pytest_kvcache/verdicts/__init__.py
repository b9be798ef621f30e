"""Reasons to distrust a trial, or a case."""

from pytest_kvcache.verdicts.noise import evaluate_case
from pytest_kvcache.verdicts.trial import evaluate_trial, idle_error

__all__ = ["evaluate_case", "evaluate_trial", "idle_error"]
