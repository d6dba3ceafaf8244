"""5. train: the un-hinted student learns to match the stored (or in-step) teacher, and is held in place elsewhere."""
