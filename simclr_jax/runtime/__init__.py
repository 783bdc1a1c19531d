"""Processes, signals, devices and the cache of compiled programs."""
