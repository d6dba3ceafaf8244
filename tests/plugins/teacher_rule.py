"""Teacher rule `halving`: after each optimiser step the teacher moves half of its way to the student."""

from hintdistill.recipes.teachers import TEACHERS, Teacher


def halving(follower, step):
    follower.average(0.5)


TEACHERS.register(Teacher("halving", "follows", halving))
