"""Flax networks: encoders, heads, BatchNorm."""
