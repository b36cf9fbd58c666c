"""Encoders: what turns media into feature maps."""
