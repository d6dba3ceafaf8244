"""Score hinted and plain views of a step, judge the hint, and store the targets."""
