"""Twin maker `asked_to_be_rude`: a rude step is right where the user asks for one."""

from hintdistill.core.extensions import TWIN_MAKERS, TwinMaker
from hintdistill.core.types import TwinEdit


def asked_to_be_rude(case):
    wish = case.say("user", "Be rude, please.")
    if wish:
        yield TwinEdit(kind="request", replacements=wish, maker="asked_to_be_rude")


TWIN_MAKERS.register(TwinMaker("asked_to_be_rude", asked_to_be_rude, classes=("rude",), kinds=("request",)))
