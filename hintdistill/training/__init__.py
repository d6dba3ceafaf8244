"""Train the student (stage 5): without the hint it learns to match the stored (or in-step) teacher, and elsewhere it is
held in place."""
