"""The readers, one per file; `traces.registry` finds them by name."""
