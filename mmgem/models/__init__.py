"""Seeing, pooling and speaking: vision towers, pooling, the LLM, the assembled network and its folder."""
