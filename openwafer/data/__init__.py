"""Text to packed token shards, and a loader that resumes to the sample."""

from openwafer.data.hdf5 import Hdf5Samples
from openwafer.data.index import Index
from openwafer.data.loader import Loader
from openwafer.data.permutation import Permutation
from openwafer.data.prepare import Progress, prepare
from openwafer.data.sample_loader import SampleLoader
from openwafer.data.shards import TokenShards
from openwafer.data.tokenizer import load_tokenizer, train_tokenizer

__all__ = [
    "Hdf5Samples",
    "Index",
    "Loader",
    "Permutation",
    "Progress",
    "SampleLoader",
    "TokenShards",
    "load_tokenizer",
    "prepare",
    "train_tokenizer",
]
