"""A run from traces to the corrected student: `stages` defines the order, `run` does a whole run, `rounds` the
on-policy loop.
"""
