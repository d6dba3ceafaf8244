"""The agent's calls for other processes and languages: an HTTP server, and tools of the Model Context Protocol."""
