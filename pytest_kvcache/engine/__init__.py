"""One rank's loop: what it is asked for, what it hands to the I/O, what became of it."""
