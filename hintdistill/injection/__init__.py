"""Render a trace token by token, and splice a hint above a step."""
