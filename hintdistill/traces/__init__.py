"""Read any trace format into `Trace`: the machinery; the readers are in `traces.formats`."""
