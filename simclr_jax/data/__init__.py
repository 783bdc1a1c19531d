"""Data sources, their files and caches, and the batches made of them."""
