"""Weight sparsity: masks, how they begin and change, and their application to a plain module and optimizer."""

from openwafer.pytorch.sparsity.algorithms import GMP, SET, RigL, Static, make_algorithm
from openwafer.pytorch.sparsity.sparse_model import SparseModel, is_sparse_by_default

__all__ = ["GMP", "SET", "RigL", "SparseModel", "Static", "is_sparse_by_default", "make_algorithm"]
