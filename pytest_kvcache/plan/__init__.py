"""What will happen: the options made whole and checked, before anything is launched."""
