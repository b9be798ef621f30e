"""One rank's loop: requests, their operations, the data they move."""
