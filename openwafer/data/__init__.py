"""Text to packed token shards, and a loader that resumes to the sample."""

from openwafer.data.index import Index
from openwafer.data.loader import Loader
from openwafer.data.permutation import Permutation
from openwafer.data.prepare import Progress, prepare
from openwafer.data.shards import TokenShards
from openwafer.data.tokenizer import load_tokenizer, train_tokenizer

__all__ = [
    "Index",
    "Loader",
    "Permutation",
    "Progress",
    "TokenShards",
    "load_tokenizer",
    "prepare",
    "train_tokenizer",
]
