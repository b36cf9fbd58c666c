"""Decoding: captions."""
