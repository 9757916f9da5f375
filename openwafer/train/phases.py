"""The phases of a run: which configuration holds from which step to which, and where its data begins."""

import dataclasses
from collections.abc import Iterator

from openwafer.train.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Phase:
    """One part of a run.

    Attributes:
        number: counted from 1.
        begin, end: steps of the run done before and after it.
        first_sample: where in the order of its data the batch of step `begin` starts. A phase on the data of the one
            before goes on in it, with batches of whatever size; on other data it starts from the beginning.
    """

    number: int
    config: RunConfig
    begin: int
    end: int
    first_sample: int

    @property
    def steps(self) -> int:
        """Steps that it takes."""
        return self.end - self.begin

    @property
    def tokens(self) -> int:
        """Tokens that it trains on."""
        return self.steps * self.config.tokens


def phases(config: RunConfig) -> Iterator[Phase]:
    """The phases of a run in order; a run without phases is one."""
    begin, sample, before = 0, 0, None
    for number, part in enumerate(config.parts, start=1):
        if before is not None and (part.data, part.sequence_length) != (before.data, before.sequence_length):
            sample = 0
        yield Phase(number, part, begin, part.train.steps, sample)
        sample += (part.train.steps - begin) * part.sequences
        begin, before = part.train.steps, part
