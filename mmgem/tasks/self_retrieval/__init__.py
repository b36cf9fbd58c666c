"""A corpus that the LLM learns to search, judge and answer from (Self-Retrieval, arXiv 2403.00801)."""
