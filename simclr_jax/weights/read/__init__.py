"""Encoders from other programs' files."""
