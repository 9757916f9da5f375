"""The front end: any `nn.Module` goes in, trains by streaming, and gives the bits of plain PyTorch."""

from openwafer.pytorch.construct import init
from openwafer.pytorch.job import Job, compile

__all__ = ["Job", "compile", "init"]
