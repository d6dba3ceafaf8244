"""Provide the calls of an agent: find the step that went wrong, and the hint that would have prevented it."""
