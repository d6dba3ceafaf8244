"""Offer the agent's calls to other processes and languages: an HTTP server, and tools of the Model Context Protocol."""
