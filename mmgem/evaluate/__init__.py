"""Measuring: retrieval, captions and classification."""
