"""Self-Retrieval (arXiv 2403.00801): a corpus that the LLM searches itself."""
