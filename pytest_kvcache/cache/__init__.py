"""Which blocks a rank's cache holds: pure logic, no I/O, no locks."""
