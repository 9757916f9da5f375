"""The training program: configuration, loop, progress, generation, demo."""
