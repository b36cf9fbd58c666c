"""Reading: files in formats people have, pictures of every kind, token ids, cached features, batches."""
