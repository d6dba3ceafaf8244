"""Train in your own loop with `hintdistill.objectives`, which needs only torch.

    python examples/custom_loop.py [recipe]

A small random student reads a context, a teacher (the same weights, frozen) reads it with a hint in front; reverse KL on the
student's top-k, its tail and the sampled token pulls the student towards the teacher. With a recipe's name the same loop
trains on that recipe (which needs pydantic and PyYAML besides).
"""

import copy
import sys

import torch

from hintdistill.objectives import Batch, divergence, objective, restrict, select


class Student(torch.nn.Module):
    """A GRU language model over 64 tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.body = torch.nn.Embedding(64, 48), torch.nn.GRU(48, 48, batch_first=True)
        self.head = torch.nn.Linear(48, 64)
        self.head.weight.data.mul_(12)  # opinionated, so that a hint changes something

    def forward(self, ids, last):
        return self.head(self.body(self.embed(ids))[0])[:, -last - 1 : -1].flatten(0, 1).log_softmax(-1)


def hint_loss(views, sampled):
    """KL(S ‖ T) on the student's top-8, the sampled token and the tail, mean over tokens."""
    s, t = views["student"], views["teacher"]
    kept = select("student_topk", s, t, sampled, k=8, include_sampled=True)
    return divergence("rkl", restrict(s, kept, "tail"), restrict(t, kept, "tail")).mean()


torch.manual_seed(0)
recipe = None
if len(sys.argv) > 1:
    from hintdistill.recipes import load_recipe

    recipe = load_recipe(sys.argv[1])
student = Student()
teacher = copy.deepcopy(student).requires_grad_(False)
context, hint, step = (torch.randint(0, 64, (8, n)) for n in (12, 4, 6))
plain, hinted, sampled = torch.cat([context, step], 1), torch.cat([context, hint, step], 1), step.flatten()
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
for i in range(60):
    views = {"student": student(plain, 6), "teacher": teacher(hinted, 6), "plain": teacher(plain, 6)}
    views["initial"] = views["plain"]
    loss = objective(recipe, Batch(views, sampled, [6] * 8), step=i)[0] if recipe else hint_loss(views, sampled)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if i % 20 == 0 or i == 59:
        print(f"step {i:3} loss {loss.item():.4f}")
