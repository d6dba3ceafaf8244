"""Provide the types, scores, errors and storage that every other package builds on. Torch-free."""
