"""What related systems learn where it is no weighting of image_text's own losses (docs/compare.md)."""
