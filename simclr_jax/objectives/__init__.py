"""Contrastive losses and regressions of pairs of views."""
