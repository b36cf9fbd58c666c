"""The systems that MM-GEM is compared with, on its backbone: a network a file (docs/compare.md)."""
