"""Results of the MLPerf Storage KV cache benchmark: read, held against themselves, written."""
