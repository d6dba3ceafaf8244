"""Types, scores, errors, storage: what every other package builds on. Torch-free."""
