"""Model folders: written, read, fetched, named."""
