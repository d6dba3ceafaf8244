"""Fresh traces from the current student, and its success in an environment."""
