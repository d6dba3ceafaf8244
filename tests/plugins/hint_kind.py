"""Hint kind `timetable`: a recipe's word for what its teacher reads, with what a run needs for it."""

from hintdistill.core.parts import HINTS, HintKindEntry

HINTS.register(HintKindEntry("timetable", needs=("demonstrations",)))
