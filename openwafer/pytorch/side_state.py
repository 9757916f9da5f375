"""What a model keeps beside its parameters and its layers' buffers: attributes, lists, counters, random generators.

A layer that is run again must find all of it as it was the first time, and micro-batches that take turns must not see
each other's. Modules, containers and plain objects that can be reached from the model are compared by the identity of
what they hold, tensors by their version. Not seen: globals, class attributes, slots, and what closures hold.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from openwafer.base.errors import RefusedError

COPY_BYTES_MOST = 16 << 20
OBJECTS_MOST = 200_000
# Parts of a module that a forward does not change, or that are looked after elsewhere.
MODULE_PARTS = frozenset(
    "training _parameters _non_persistent_buffers_set _backward_pre_hooks _backward_hooks _is_full_backward_hook "
    "_forward_hooks _forward_hooks_with_kwargs _forward_hooks_always_called _forward_pre_hooks "
    "_forward_pre_hooks_with_kwargs _state_dict_hooks _state_dict_pre_hooks _load_state_dict_pre_hooks "
    "_load_state_dict_post_hooks".split()
)
FOREIGN = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "openwafer"}
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
SIMPLE = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, type)


class Snapshot:
    """The contents of everything mutable that can be reached from some objects, one level deep each.

    Args:
        skip: ids of tensors that are not looked at.
        copy: whether the values of tensors are copied, so that they can be put back.
    """

    def __init__(self, roots: Iterable[Any], skip: Set[int] = frozenset(), *, modules: bool = True, copy: bool = True):
        self.objects: dict[int, Any] = {}
        self.contents: dict[int, Any] = {}
        seen: set[int] = set()
        waiting = list(roots)
        while waiting and len(seen) < OBJECTS_MOST:
            value = waiting.pop()
            if isinstance(value, SIMPLE) or id(value) in seen or (isinstance(value, nn.Module) and not modules):
                continue
            seen.add(id(value))
            if isinstance(value, torch.Tensor):
                if id(value) not in skip and not isinstance(value, nn.Parameter):
                    self._take(value, copy)
                continue
            if isinstance(value, tuple):
                waiting.extend(value)
                continue
            if not _watched(value):
                continue
            self._take(value, copy)
            inside = self.contents[id(value)]
            if isinstance(inside, dict):
                waiting.extend(inside.values())
            elif isinstance(inside, list):
                waiting.extend(inside)

    def _take(self, value: Any, copy: bool) -> None:
        self.objects[id(value)] = value
        self.contents[id(value)] = read(value, copy)

    def changed(self) -> list[Any]:
        """The objects that do not hold what they held."""
        return [value for key, value in self.objects.items() if not holds(value, self.contents[key])]

    def restore(self) -> None:
        """Put back what has changed."""
        for value in self.changed():
            write(value, self.contents[id(value)])


def _watched(value: Any) -> bool:
    if isinstance(value, (nn.Module, list, dict, set, deque, SimpleNamespace, *GENERATORS)):
        return True
    home = type(value).__module__.partition(".")[0]
    return home not in FOREIGN and isinstance(getattr(value, "__dict__", None), dict)


def read(value: Any, copy: bool = True) -> Any:
    """What an object holds, one level deep."""
    if isinstance(value, torch.Tensor):
        size = value.numel() * value.element_size()
        return value._version, value.detach().clone() if copy and size <= COPY_BYTES_MOST else None
    if isinstance(value, dict):
        return dict(value.items())
    if isinstance(value, (list, deque)):
        return list(value)
    if isinstance(value, set):
        return set(value)
    if isinstance(value, torch.Generator):
        return (value.get_state(),)
    if isinstance(value, np.random.Generator):
        return (value.bit_generator.state,)
    if isinstance(value, np.random.RandomState):
        return (value.get_state(legacy=False),)
    if isinstance(value, random.Random):
        return (value.getstate(),)
    if isinstance(value, nn.Module):
        return {name: part for name, part in vars(value).items() if name not in MODULE_PARTS}
    return dict(vars(value))


def holds(value: Any, contents: Any) -> bool:
    """Whether an object still holds what `read` found in it."""
    if isinstance(value, torch.Tensor):
        return value._version == contents[0]
    now = read(value, copy=False)
    if isinstance(value, GENERATORS):
        return _plain_equal(now, contents)
    if isinstance(value, set):
        return now == contents
    if len(now) != len(contents):
        return False
    if isinstance(contents, list):
        return all(_same(a, b) for a, b in zip(now, contents, strict=True))
    return all(name in now and _same(now[name], part) for name, part in contents.items())


def write(value: Any, contents: Any) -> None:
    """Make an object hold what `read` found in it."""
    if isinstance(value, torch.Tensor):
        if contents[1] is None:
            raise RefusedError(
                f"a tensor of {value.numel() * value.element_size()} bytes that belongs to no layer changes in the "
                "forward: it is too large to be put back. Make it a buffer of the layer that changes it"
            )
        with torch.no_grad():
            value.copy_(contents[1])
    elif isinstance(value, OrderedDict):
        OrderedDict.clear(value)
        for key, part in contents.items():
            OrderedDict.__setitem__(value, key, part)
    elif isinstance(value, dict):
        dict.clear(value)
        dict.update(value, contents)
    elif isinstance(value, (list, deque)):
        value.clear()
        value.extend(contents)
    elif isinstance(value, set):
        value.clear()
        value.update(contents)
    elif isinstance(value, torch.Generator):
        value.set_state(contents[0])
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = contents[0]
    elif isinstance(value, np.random.RandomState):
        value.set_state(contents[0])
    elif isinstance(value, random.Random):
        value.setstate(contents[0])
    else:
        held = vars(value)
        for name in [n for n in held if n not in contents and not (isinstance(value, nn.Module) and n in MODULE_PARTS)]:
            del held[name]
        held.update(contents)


def _same(left: Any, right: Any) -> bool:
    return left is right or (type(left) is type(right) and isinstance(left, SIMPLE) and left == right)


def _plain_equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(_plain_equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple) and len(left) < 10:
        return len(left) == len(right) and all(_plain_equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


class Log:
    """How the contents of some objects changed during one forward, by the number of the border."""

    def __init__(self, base: Snapshot):
        self.base = base
        self.changes: dict[int, list[tuple[int, Any]]] = {}
        self.time = 0

    def note(self) -> list[Any]:
        """A border: note what has changed since the last one."""
        self.time += 1
        changed = [v for key, v in self.base.objects.items() if not holds(v, self._at(key, self.time))]
        for value in changed:
            self.changes.setdefault(id(value), []).append((self.time, read(value)))
        return changed

    def add(self, value: Any) -> None:
        """An object that is about to change for the first time."""
        if id(value) not in self.base.objects:
            self.base._take(value, True)

    def contents(self, value: Any, time: int) -> Any:
        """What an object held at a border; what it holds now if it was not watched then."""
        return self._at(id(value), time) if id(value) in self.base.objects else read(value)

    def _at(self, key: int, time: int) -> Any:
        found = self.base.contents[key]
        for moment, contents in self.changes.get(key, ()):
            if moment <= time:
                found = contents
        return found


Mark = tuple[Log, int]


class SideState:
    """Follows the side state of a model through its forwards, and puts it back for a layer that is run again.

    What changes is learned by looking at everything in the first forward, and again in the second, fourth, eighth;
    in between only what has ever changed is followed, and whatever assigns to a module's attribute.
    """

    def __init__(self, model: nn.Module, skip: Set[int]):
        self.model = model
        self.skip = skip
        self.volatile: dict[int, Any] = {}
        self.on_change: Callable[[nn.Module, str], None] | None = None
        self._forwards = 0
        self._log: Log | None = None
        self._learning = False

    def snapshot(self, skip: Set[int] = frozenset()) -> Snapshot:
        """Everything, as it is now."""
        return Snapshot([self.model], self.skip | skip)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """While the model runs forward."""
        self._forwards += 1
        self._learning = self._forwards & (self._forwards - 1) == 0
        roots = [self.model] if self._learning else []
        base = Snapshot(roots, self.skip)
        for value in self.volatile.values():
            if id(value) not in base.objects:
                base._take(value, True)
        self._log = Log(base)
        try:
            with self.assignments():
                yield
        finally:
            self.mark()
            self._log = None

    def mark(self) -> Mark | None:
        """A border is crossed: the moment to which `put_back` can return."""
        log = self._log
        if log is None or not log.base.objects:
            return None
        for value in log.note():
            self.volatile[id(value)] = value
        return log, log.time

    @contextmanager
    def put_back(self, mark: Mark | None) -> Iterator[None]:
        """The side state as it was at a border, for a while."""
        if mark is None or not self.volatile:
            yield
            return
        log, time = mark
        swapped = []
        for value in self.volatile.values():
            wanted = log.contents(value, time)
            now = read(value)
            swapped.append((value, now))
            if not holds(value, wanted):
                write(value, wanted)
        try:
            yield
        finally:
            for value, now in swapped:
                if isinstance(value, torch.Tensor) or not holds(value, now):
                    write(value, now)

    @contextmanager
    def assignments(self) -> Iterator[None]:
        """See every assignment to an attribute of a module."""
        original = nn.Module.__setattr__

        def assign(module: nn.Module, name: str, value: Any) -> None:
            if name not in MODULE_PARTS:
                self._assigned(module, name, value)
            original(module, name, value)

        nn.Module.__setattr__ = assign  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.__setattr__ = original  # type: ignore[method-assign]

    def _assigned(self, module: nn.Module, name: str, value: Any) -> None:
        parts = (vars(module).get(part, {}) for part in ("_buffers", "_parameters", "_modules"))
        held: Any = next((part for part in parts if name in part), module)
        now = vars(module).get(name, self) if held is module else held[name]
        if _same(now, value):
            return
        if self.on_change is not None:
            self.on_change(module, name)
        if self._log is not None and id(held) not in self._log.base.objects:
            self._log.add(held)
            self.volatile[id(held)] = held
