"""What a trained model computes of pictures and texts."""
