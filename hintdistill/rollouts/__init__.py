"""Sample fresh traces from the current student, and measure its success in an environment."""
