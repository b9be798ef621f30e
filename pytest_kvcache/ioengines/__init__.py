"""How a rank's loop gets its transfers carried out: one protocol, several engines."""
