"""Score hinted and plain views of a step, judge the hint, store the targets."""
