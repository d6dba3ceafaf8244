"""General instructions that have nothing to do with errands: a student should answer them as the model did before training.

Every prompt is one of our own frames with one of our own subjects, so their number is that of the pairs that are listed.
"""

from __future__ import annotations

SUBJECTS = (
    "rain",
    "bread",
    "bicycles",
    "the moon",
    "volcanoes",
    "bees",
    "chess",
    "tea",
    "rivers",
    "glass",
    "magnets",
    "whales",
    "deserts",
    "winter",
    "trees",
    "clocks",
    "music",
    "salt",
    "lighthouses",
    "libraries",
    "earthquakes",
    "gardens",
    "trains",
    "paper",
    "the heart",
    "fire",
)
FRAMES = (
    "Explain {} to a child of eight.",
    "Write two sentences about {}.",
    "List three facts about {}.",
    "Why are people interested in {}?",
    "Write a short poem about {}.",
    "What should a beginner know about {}?",
    "Give me a title for an article about {}.",
    "Ask me a question about {}.",
    "Name a common mistake that people make about {}.",
    "Describe {} in one word and say why.",
    "Tell a very short story in which {} matter.",
    "How has our view of {} changed in a hundred years?",
)
OTHERS = (
    "What is {a} plus {b}?",
    "Which is larger, {a} or {b}?",
    "Count from {a} to {c}.",
)


def prompts() -> list[str]:
    """All of them, in a fixed order."""
    framed = [frame.format(subject) for frame in FRAMES for subject in SUBJECTS]
    numbers = [(3 + 7 * i % 40, 5 + 11 * i % 60) for i in range(12)]
    return framed + [other.format(a=a, b=b, c=a + 4) for other in OTHERS for a, b in numbers]
