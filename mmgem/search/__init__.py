"""Searching: the index of a folder of photos, its search, and pages that show the results."""
