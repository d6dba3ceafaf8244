"""Recorders: they write the model calls of an agent's framework as traces while the agent runs. This package does not
import torch.

A recorder never breaks the agent: any error in it is counted, reported once as a warning, and otherwise ignored.
"""
