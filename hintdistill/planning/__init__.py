"""What a run would take before it is run: tokens exactly, memory from the model's shape, time from a short measured run."""
