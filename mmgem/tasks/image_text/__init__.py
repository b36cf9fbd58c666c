"""Images and texts: embeddings contrasted and captions predicted, in one pass (MM-GEM, arXiv 2405.19333)."""
