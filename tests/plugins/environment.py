"""Environment `echo`: the student is done when it says the task's name."""

from hintdistill.core.extensions import ENVIRONMENTS, EnvironmentEntry
from hintdistill.core.types import Message
from hintdistill.rollouts.environment import Reply, Start


class Echo:
    def reset(self, task):
        self.task = task
        return Start((Message(role="user", content=f"Say {task}."),), ())

    def step(self, message):
        return Reply((), True, float(self.task in (message.content or "")))


class Tasks:
    def splits(self):
        return {"train": ("red", "green"), "test": ("blue",)}

    def make(self):
        return Echo()

    def check(self, trace):
        return ()


ENVIRONMENTS.register(EnvironmentEntry("echo", Tasks))
