"""Trainer files of ModelZoo 2.x, read into the one schema of a run."""
