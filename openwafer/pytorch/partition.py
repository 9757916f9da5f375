"""Finds the layers of any module and gives every parameter to exactly one page.

A layer is a module whose call is a border: its pages are in memory while it runs. Layers are found by structure:
siblings of the same class and the same parameter shapes are layers; what does not repeat is cut down to modules
without children. Parameters too small to be worth a border share one page that stays in memory during a step; a
large parameter that no layer owns gets a page of its own and comes when it is used. Frozen small tensors and
anything that is not floating point are left in memory, like buffers.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from openwafer.base.errors import PartitionError

SMALL_BYTES_MOST = 1 << 20
SMALL_SHARE = 1024
HOLDERS = (nn.ParameterList, nn.ParameterDict)

Selector = Callable[[str, nn.Module], bool] | Sequence[str]


@dataclass(frozen=True)
class Layer:
    """A module whose call is a border, and the pages that hold its parameters (tied ones included)."""

    name: str
    module: nn.Module
    pages: tuple[int, ...]


@dataclass(frozen=True)
class PageParams:
    """The parameters of one page: names and tensors, in order."""

    name: str
    trainable: bool
    params: tuple[tuple[str, nn.Parameter], ...]


@dataclass(frozen=True)
class Partition:
    """How a model is cut.

    `shared` are the pages of small parameters that no layer owns, `left` the tensors that stay in memory.
    """

    layers: tuple[Layer, ...]
    pages: tuple[PageParams, ...]
    shared: tuple[int, ...]
    left: tuple[tuple[str, nn.Parameter], ...]


def partition(model: nn.Module, *, layers: Selector | None = None, limit_bytes: int | None = None) -> Partition:
    """Cut a model.

    Args:
        layers: overrides the search: names or patterns (`encoder.block.*`), or a predicate of (name, module).
        limit_bytes: a repeated module larger than this is cut further.

    Raises:
        PartitionError: the override matches nothing, or one of its modules lies inside another.
    """
    named = dict(model.named_parameters())
    total = sum(_bytes(param) for param in named.values())
    small = min(SMALL_BYTES_MOST, total // SMALL_SHARE)
    if layers is not None:
        found = list(_selected(model, layers))
    else:
        found = list(_search(model, "", total, small, limit_bytes or total, {id(model)}))
    return _assign(named, found, small)


def _bytes(param: torch.Tensor) -> int:
    return param.numel() * param.element_size()


def _module_bytes(module: nn.Module) -> int:
    return sum(_bytes(param) for param in module.parameters())


def _callable(module: nn.Module) -> bool:
    """Whether a module can be called at all; containers such as ModuleList cannot."""
    return type(module).forward is not nn.Module.forward


def _signature(module: nn.Module) -> tuple:
    """What siblings must share to be repetitions; one may have a few small parameters more (T5's first block has)."""
    least = _module_bytes(module) // 64
    return type(module), tuple(
        (name, tuple(p.shape), p.dtype) for name, p in module.named_parameters() if _bytes(p) >= least
    )


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules right below a module, those that it only keeps in a list (as Keras does) included."""
    held = [(name, child) for name, child in module.named_children()]
    for name, value in vars(module).items():
        if name != "_modules" and isinstance(value, (list, tuple, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            held += [(f"{name}.{key}", item) for key, item in items if isinstance(item, nn.Module)]
    own = {id(param) for param in module.parameters()}
    children, seen = [], {id(module)}
    for name, child in held:
        params = {id(param) for param in child.parameters()}
        # Not a parent that a child knows, and not a mere holder of parameters.
        if id(child) not in seen and params and params <= own and not isinstance(child, HOLDERS):
            children.append((name, child))
            seen.add(id(child))
    return children


def _search(
    module: nn.Module, prefix: str, total: int, small: int, limit: int, seen: set[int]
) -> Iterator[tuple[str, nn.Module]]:
    """Layers below a module that is none itself; each module once, however many paths lead to it."""
    children = [(name, child) for name, child in _children(module) if id(child) not in seen]
    seen.update(id(child) for _, child in children)
    counts = Counter(_signature(child) for _, child in children)
    for name, child in children:
        path = f"{prefix}{name}"
        size = _module_bytes(child)
        if size <= small:
            continue
        leaf = not _children(child)
        repeated = counts[_signature(child)] > 1 and not (size > total // 4 and _repeats_inside(child, size))
        compact = size <= total // 16 and not _repeats_inside(child, size)
        if _callable(child) and (leaf or (size <= limit and (repeated or compact))):
            yield path, child
        else:
            yield from _search(child, f"{path}.", total, small, limit, seen)


def _repeats_inside(module: nn.Module, size: int) -> bool:
    """Whether most of a module is a repetition of some part of it."""
    for part in module.modules():
        children = _children(part)
        counts = Counter(_signature(child) for _, child in children)
        repeated = sum(_module_bytes(child) for _, child in children if counts[_signature(child)] > 1)
        if repeated * 2 >= size:
            return True
    return False


def _selected(model: nn.Module, layers: Selector) -> Iterator[tuple[str, nn.Module]]:
    if callable(layers):
        chosen = [(name, module) for name, module in model.named_modules() if name and layers(name, module)]
    else:
        chosen = []
        for pattern in layers:
            matches = [(n, m) for n, m in model.named_modules() if n and fnmatch.fnmatchcase(n, pattern)]
            matches = [(n, m) for n, m in matches if n.count(".") == pattern.count(".")]
            if not matches:
                raise PartitionError(
                    f"layers: no module is called {pattern!r}; modules are called, for instance, "
                    + ", ".join(repr(n) for n, _ in list(model.named_modules())[1:6])
                )
            chosen += matches
    names = [name for name, _ in chosen]
    for name, module in chosen:
        outer = next((other for other in names if name.startswith(f"{other}.")), None)
        if outer is not None:
            raise PartitionError(f"layers: {name!r} lies inside {outer!r}, which is chosen too: choose one of the two")
        if not _callable(module):
            kind = type(module).__name__
            raise PartitionError(f"layers: {name!r} is a {kind}, which is never called: choose its parts")
        if next(module.parameters(), None) is not None:
            yield name, module


def _assign(named: dict[str, nn.Parameter], found: list[tuple[str, nn.Module]], small: int) -> Partition:
    names = {id(param): name for name, param in named.items()}
    users: dict[int, list[int]] = {id(param): [] for param in named.values()}
    for number, (_, module) in enumerate(found):
        for param in module.parameters():
            users[id(param)].append(number)

    groups: dict[tuple, list[tuple[str, nn.Parameter]]] = {}
    left: list[tuple[str, nn.Parameter]] = []
    for name, param in named.items():
        if not param.is_floating_point() or (not param.requires_grad and (param.dim() < 2 or _bytes(param) <= small)):
            left.append((name, param))
            continue
        owners = tuple(users[id(param)])
        if not owners:
            owners = ("small",) if _bytes(param) <= small else (name,)
        groups.setdefault((owners, param.requires_grad, param.dtype), []).append((name, param))

    pages: list[PageParams] = []
    shared: list[int] = []
    for (owners, trainable, dtype), params in groups.items():
        if owners == ("small",):
            shared.append(len(pages))
            page = "small parameters"
        elif isinstance(owners[0], int):
            page = " and ".join(found[number][0] for number in owners) or "model"
        else:
            page = owners[0]
        if dtype != torch.float32:
            page += f" ({str(dtype).removeprefix('torch.')})"
        pages.append(PageParams(page if trainable else f"{page} (frozen)", trainable, tuple(params)))

    owner = {id(param): number for number, page in enumerate(pages) for _, param in page.params}
    layers = tuple(
        Layer(name, module, tuple(sorted({owner[id(p)] for p in module.parameters() if id(p) in owner})))
        for name, module in found
    )
    result = Partition(layers, tuple(pages), tuple(shared), tuple(left))
    _check_coverage(named, result, names)
    return result


def _check_coverage(named: dict[str, nn.Parameter], result: Partition, names: dict[int, str]) -> None:
    """Every parameter has exactly one owner."""
    owned = Counter(id(param) for page in result.pages for _, param in page.params)
    owned.update(id(param) for _, param in result.left)
    wrong = [names[key] for key in names if owned[key] != 1]
    assert not wrong and set(owned) == set(names), f"parameters without exactly one page: {wrong}"
