"""Placement `opening`: the hint stands before everything else that the student reads."""

from hintdistill.core.extensions import PLACEMENTS, PlacementEntry
from hintdistill.injection.splice import Splice


def opening(site, text, role, offset):
    return Splice(0, tuple(site.renderer.encode(text)), "opening", role)


PLACEMENTS.register(PlacementEntry("opening", opening, form="Remember: {hint}\n"))
