"""Context maker `greeting`: a teacher that has been greeted."""

from hintdistill.core.extensions import HINT_SOURCES, HintSource


def greeting(case):
    return f"Hello, and mind step {case.finding.step}."


HINT_SOURCES.register(HintSource("greeting", context=greeting, reads="nothing but the step's number"))
