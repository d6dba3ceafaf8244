"""Estimate a run before it starts: tokens exactly, memory from the model's shape, time from a short measured run."""
