"""Read any trace format into `Trace`. This package is the machinery; the readers are in `traces.formats`."""
