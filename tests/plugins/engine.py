"""Engine `uniform`: every token is as likely as every other, whatever was read. It can be asked about chosen ids."""

import json
import math

import numpy as np

from hintdistill.core.extensions import ENGINES, EngineEntry
from hintdistill.core.scores import Scores

CAPABILITIES = frozenset({"gather"})


class Uniform:
    capabilities, key, max_length = CAPABILITIES, "uniform", 4096

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def score(self, requests, top_k):
        return [self._one(r, min(top_k, self.vocabulary - 1)) for r in requests]

    def _one(self, request, k):
        sampled = request.ids[request.start : request.end]
        others = np.arange(k)[None] + (np.arange(k)[None] >= sampled[:, None])
        ids, each = np.concatenate([others, sampled[:, None]], 1), np.float32(-math.log(self.vocabulary))
        left = self.vocabulary - ids.shape[1]
        tail = np.float32(math.log(left / self.vocabulary)) if left else -np.inf
        gathered = None if request.gather_ids is None else np.full((len(ids), len(request.gather_ids)), each)
        return Scores(
            np.full(len(ids), each),
            ids,
            np.full(ids.shape, each),
            np.full(len(ids), tail, np.float32),
            gathered,
            sampled,
        )


def load(job):
    return Uniform(int(json.loads((job.folder / "config.json").read_text())["vocab_size"]))


ENGINES.register(EngineEntry("uniform", CAPABILITIES, load))
