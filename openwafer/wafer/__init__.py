"""An open compiler, simulator and host runtime for CSL programs on WSE-2 and WSE-3.

Floors inside, top to bottom: cli, runtime, csl | sim, image, isa, arch. The compiler never runs a program and the
simulator never reads CSL; they meet in the image.
"""
