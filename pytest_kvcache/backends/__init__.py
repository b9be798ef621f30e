"""Storage backends; the registry knows their names, protocol.py what they promise."""
