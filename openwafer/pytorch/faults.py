"""Notices every use of a parameter that no border announced, and fetches its page before the operation runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from openwafer.pytorch.engine import Engine

# Names of tensor methods and attributes that tell about a tensor without reading it.
METADATA = frozenset(
    "size dim numel nelement ndimension stride is_floating_point is_complex element_size is_contiguous storage_offset "
    "requires_grad_ register_hook register_post_accumulate_grad_hook __len__ __hash__ __set__ __delete__ "
    "is_signed is_inference type_as_metadata has_names get_device".split()
)
READING_ATTRIBUTES = frozenset("data T mT H mH real imag".split())
# Functions that autocast never casts a parameter for; of any other it is assumed.
UNCAST = METADATA | frozenset(
    "__get__ __getitem__ embedding embedding_bag layer_norm group_norm batch_norm instance_norm rms_norm add sub mul "
    "div __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __neg__ add_ expand expand_as view view_as "
    "reshape unsqueeze squeeze transpose permute t to type_as detach clone cat stack repeat flatten chunk split exp "
    "softplus sigmoid tanh softmax sum mean float where index_select gather".split()
)


class Faults(TorchFunctionMode):
    """Fetches the page of a parameter that is used outside every border."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine = engine

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        known = self.engine.page_of
        params = []
        for value in (*args, *kwargs.values()):
            if id(value) in known:
                params.append(value)
            elif isinstance(value, (list, tuple, dict)):
                params += [leaf for leaf in _leaves(value) if id(leaf) in known]
        if params:
            self._use(func, params)
        return func(*args, **kwargs)

    def _use(self, func: Callable, params: list[nn.Parameter]) -> None:
        name = getattr(func, "__name__", "")
        if name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") not in READING_ATTRIBUTES:
            return
        if name in METADATA:
            return
        engine = self.engine
        pages = {engine.page_of[id(param)][0] for param in params}
        if not pages <= engine._held:
            # All at once: another page could take the place of one that was fetched before it.
            engine._touch(tuple(sorted(pages - engine._held if engine.local.visiting else pages)))
        if name not in UNCAST:
            for param in params:
                engine.cast(param)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value
