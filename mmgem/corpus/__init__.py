"""Self-Retrieval: a corpus that the LLM itself indexes, searches, judges and answers from."""
