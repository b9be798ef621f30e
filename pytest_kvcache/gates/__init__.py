"""Pass or fail: rules applied to results and baselines."""
