"""How ranks are started: one module per launcher family."""
