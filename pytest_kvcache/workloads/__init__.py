"""Where requests come from: traces and synthetic users."""
