"""Grids of runs, as tables and figures."""
