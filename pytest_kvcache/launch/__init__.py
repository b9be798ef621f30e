"""From a plan to the record of a trial: start, watch, end, explain."""
