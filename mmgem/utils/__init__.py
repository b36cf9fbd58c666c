"""Small pieces that know nothing of models."""
