"""One reader a file; `traces.registry` finds them by name."""
