"""The parts of benchmarks/real.py: what a real model does on the errands, what it learns, and the tables of it."""
