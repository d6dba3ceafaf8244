"""A run from traces to the corrected student: `stages` has the order, `run` a whole run, `rounds` the on-policy loop."""
