"""Every error that openwafer raises on purpose; anything else that escapes is a bug of ours.

    OpenwaferError
    ├── ConfigError (also ValueError)   an option or an argument is wrong
    ├── BudgetError                     the memory or disk budget is too small; names the smallest that works
    ├── RefusedError                    the model or the call cannot be streamed exactly
    ├── PartitionError                  the model cannot be cut into pages as asked
    ├── StoreError                      the parameter store
    │   ├── StoreLocked                 another process has it open
    │   ├── StoreCorrupt                a checksum or a manifest does not hold
    │   ├── StoreFull                   no space left on the device
    │   ├── StoreIOError                the device failed to read or write
    │   └── StoreTimeout                a wait for the device passed its bound
    ├── CheckpointError                 a checkpoint of another program is damaged, unsafe or of an unknown kind
    ├── DataError                       the data set, the tokenizer or a shard is unusable
    └── RunError                        a run folder or a training run cannot go on

A message says what is wrong, the value received, what is allowed, and what to do.
"""


class OpenwaferError(Exception):
    """Root of the tree: catch this to catch everything openwafer raises on purpose."""


class ConfigError(OpenwaferError, ValueError):
    """An option or an argument is wrong."""


class BudgetError(OpenwaferError):
    """The memory or disk budget is too small for what was asked."""


class RefusedError(OpenwaferError):
    """What was asked cannot be done with the bits of plain PyTorch, so it is not done at all."""


class PartitionError(OpenwaferError):
    """The model cannot be cut into pages as asked."""


class StoreError(OpenwaferError):
    """Something is wrong with the parameter store."""


class StoreLocked(StoreError):
    """Another process has the store open."""


class StoreCorrupt(StoreError):
    """A checksum, a manifest or a size in the store does not hold."""


class StoreFull(StoreError):
    """The device under the store has no space left."""


class StoreIOError(StoreError):
    """The device under the store failed to read or write."""


class StoreTimeout(StoreError):
    """A wait for the device under the store passed its bound."""


class CheckpointError(OpenwaferError):
    """A checkpoint of another program is damaged, unsafe or of an unknown kind."""


class DataError(OpenwaferError):
    """The data set, the tokenizer or a shard is unusable."""


class RunError(OpenwaferError):
    """A run folder is not what it should be, or a training run cannot go on."""
