"""Numbers: sections, histograms, series, the recorder."""
