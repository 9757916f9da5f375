"""Engines: the reference in Python, which is the definition, and the fast core in C."""
