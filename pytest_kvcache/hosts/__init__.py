"""The machines: who they are, what they hold, how they are reached, what is left on them."""
