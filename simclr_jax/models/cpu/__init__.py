"""Convolutions and the sums of BatchNorm in compiled loops, for one CPU."""
