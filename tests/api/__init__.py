"""The public names as users call them: what the type checkers and what the program say of a wrong call."""
