"""Seeing, pooling and speaking: vision encoders, pooling, the LLM, the assembled network and its folder."""
