"""A checkpoint's text tower learned from texts alone, and captions from its embeddings."""
