"""Recorders: what an agent's framework says of its model calls, written as traces while the agent runs. Torch-free.

A recorder never breaks the agent: whatever goes wrong in it is counted, said once as a warning, and left behind.
"""
