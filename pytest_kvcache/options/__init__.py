"""What was asked for: options, their table, the rules of gates."""
