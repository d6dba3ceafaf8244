"""Whether the effect is real: controlled arms over seeds, intervals, a prediction made before any training."""
