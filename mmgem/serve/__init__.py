"""The HTTP server: an API over a model and an index, micro-batched, and a web page."""
