"""simclr_jax: SimCLR in JAX, from images without labels to a measured encoder."""

__version__ = '0.1.0'
