"""What came back: records, trials, cases, runs, and whether they can be trusted."""
