"""A run on a page: its numbers, curves, pictures and neighbours."""
