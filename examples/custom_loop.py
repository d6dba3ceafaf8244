"""A recipe in a training loop of your own: `hintdistill.objectives` and nothing else of the toolkit's machinery.

    python examples/custom_loop.py [recipe]

A small random student reads a context, a teacher (the same weights, frozen) reads it with a hint in front; the recipe pulls
the student's distribution over its own tokens towards the teacher's.
"""

import copy
import sys

import torch

from hintdistill.objectives import Batch, objective
from hintdistill.recipes import load_recipe


class Student(torch.nn.Module):
    """A GRU language model over 64 tokens."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(64, 48)
        self.body = torch.nn.GRU(48, 48, batch_first=True)
        self.head = torch.nn.Linear(48, 64)
        self.head.weight.data.mul_(12)  # opinionated, so that a hint changes something

    def forward(self, ids, last):
        return self.head(self.body(self.embed(ids))[0])[:, -last - 1 : -1].flatten(0, 1).log_softmax(-1)


torch.manual_seed(0)
recipe = load_recipe(sys.argv[1] if len(sys.argv) > 1 else "targeted")
student = Student()
teacher = copy.deepcopy(student).requires_grad_(False)
context, hint, step = (torch.randint(0, 64, (8, n)) for n in (12, 4, 6))
plain, hinted = torch.cat([context, step], 1), torch.cat([context, hint, step], 1)
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
for i in range(60):
    views = {"student": student(plain, 6), "teacher": teacher(hinted, 6), "plain": teacher(plain, 6)}
    views["initial"] = views["plain"]
    loss, metrics = objective(recipe, Batch(views, step.flatten(), [6] * 8), step=i)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if i % 20 == 0 or i == 59:
        print(f"step {i:3} loss {loss.item():.4f}  " + "  ".join(f"{k} {v:.3f}" for k, v in sorted(metrics.items())))
