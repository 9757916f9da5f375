"""The window on the device's memory: what is there when, whose memory it is, and that every wait is waited."""

import random
from collections.abc import Callable, Iterator

import pytest
import torch

from openwafer.base.errors import ConfigError
from openwafer.streaming.files import Buffer
from openwafer.streaming.link import Event, HostLink, open_link
from openwafer.streaming.page import PageSpec, layout_page
from openwafer.streaming.resident import Ticket
from openwafer.streaming.store import Store
from openwafer.streaming.streamer import Streamer
from openwafer.streaming.update import OptimizerSpec, snapshot, state_layout
from openwafer.streaming.window import Window
from tests.streaming.lazy_link import LazyLink

SIZES = (3000, 5000, 5000, 1000, 9000)


class Bench:
    """Pages of random numbers behind a window, and what is bound of them."""

    def __init__(self, pool_pages: int | None, link: HostLink, sizes: tuple[int, ...] = SIZES):
        self.optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        spec = OptimizerSpec.of(self.optimizer)
        group = self.optimizer.param_groups[0]
        self.specs: list[PageSpec] = []
        for index, size in enumerate(sizes):
            params = [
                (name, (count,), 0, state_layout(spec, group, (count,))) for name, count in (("a", size), ("b", 7))
            ]
            self.specs.append(layout_page(index, f"page{index}", torch.float32, True, params, True))
        store = Store(None)
        store.attach(self.specs)
        self.bound: dict[int, list[torch.Tensor]] = {}
        self.host = Streamer(
            store, self.specs, spec, pool_bytes=None, grad_bytes=None, bind=lambda *_: None, unbind=lambda _: None
        )
        pool_bytes = None if pool_pages is None else pool_pages * max(s.param_bytes for s in self.specs)
        self.window = Window(
            self.host, link, pool_bytes=pool_bytes, bind=self.bound.__setitem__, unbind=lambda index: self.forget(index)
        )
        for index, page in enumerate(self.specs):
            slab = Buffer(page.param_bytes)
            slab.view(torch.float32, 0, page.numel).normal_()
            self.host.place(index, slab, [Buffer(region.num_bytes) for region in page.regions[1:]])
        self.window.start()

    def forget(self, index: int) -> None:
        del self.bound[index]

    def require_same(self, index: int) -> None:
        """What is bound of a page is what the host has."""
        for there, here in zip(self.bound[index], self.host.pages[index].param_views(), strict=True):
            assert torch.equal(there, here)
            assert there.data_ptr() != here.data_ptr()

    def ticket(self) -> Ticket:
        return Ticket((snapshot(self.optimizer.param_groups[0]),), None, True)


@pytest.fixture(params=[HostLink, LazyLink])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def made(pool_pages: int | None = None, **options: tuple) -> Bench:
        benches.append(Bench(pool_pages, request.param(), **options))
        return benches[-1]

    yield made
    for bench in benches:
        bench.window.close()


def test_pages_are_copied_ahead_and_found_again(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.window.plan([(0,), (1, 2), (3,)])
    bench.window.advance(1)
    bench.window.acquire([0], "forward")
    bench.require_same(0)
    assert set(bench.bound) == {0}, "what was copied ahead is bound when it is held"
    copied = bench.window.copied_up_bytes
    assert copied == sum(bench.specs[i].param_bytes for i in (0, 1, 2, 3))
    for position, indices in ((2, [1, 2]), (3, [3]), (3, [0])):
        bench.window.advance(position)
        bench.window.acquire(indices, "forward")
        for index in indices:
            bench.require_same(index)
    assert bench.window.copied_up_bytes == copied


@pytest.mark.parametrize("pool_pages", [0, 1, 2, 3, None])
def test_every_order_of_use(make: Callable[..., Bench], pool_pages: int | None) -> None:
    """Whatever the plan says and whatever happens instead."""
    chance = random.Random(7)
    bench = make(pool_pages)
    most_held = 0
    for _ in range(20):
        plan = [tuple(chance.sample(range(len(SIZES)), chance.choice([1, 1, 2]))) for _ in range(8)]
        bench.window.plan(plan)
        for position, access in enumerate(plan):
            if chance.random() < 0.1:
                access = (chance.randrange(len(SIZES)),)
            bench.window.advance((position + 1) % len(plan))
            bench.window.acquire(access, "forward")
            for index in access:
                bench.require_same(index)
            most_held = max(most_held, sum(bench.specs[index].param_bytes for index in access))
            assert pool_pages is None or bench.window._slab_bytes <= max(bench.window.pool_bytes or 0, most_held)
            if chance.random() < 0.5:
                index = chance.choice(access)
                bench.window.stash(index, {0: torch.randn(SIZES[index]), 1: torch.randn(7)})
            bench.window.release(access)
        before = {index: [view.clone() for view in bench.host.pages[index].param_views()] for index in range(5)}
        changed = {page.spec.index for page in bench.host.pages if page.grads.present}
        bench.window.issue(bench.ticket())
        assert not changed & set(bench.window._slabs), "copies of what changes are stale"
        bench.host.flush()
        for index, values in before.items():
            now = bench.host.pages[index].param_views()
            assert all(torch.equal(a, b) == (index not in changed) for a, b in zip(values, now, strict=True))
            assert all(view.isfinite().all() for view in now)


def test_updates_are_those_of_the_gradients(make: Callable[..., Bench]) -> None:
    bench = make(1)
    grads = [{0: torch.randn(size), 1: torch.randn(7)} for size in SIZES]
    expected = []
    for index, held in enumerate(grads):
        params = [torch.nn.Parameter(view.clone()) for view in bench.host.pages[index].param_views()]
        optimizer = torch.optim.AdamW(params, lr=0.1)
        for param, grad in zip(params, held.values(), strict=True):
            param.grad = grad.clone()
        optimizer.step()
        expected.append(params)
    for index, held in enumerate(grads):
        bench.window.stash(index, held)
    bench.window.issue(bench.ticket())
    bench.window.plan([(index,) for index in range(5)])
    for index, params in enumerate(expected):
        bench.window.acquire([index], "forward")
        for view, param in zip(bench.bound[index], params, strict=True):
            assert torch.equal(view, param)
        bench.window.release([index])


def test_gradients_come_back_and_go_again(make: Callable[..., Bench]) -> None:
    bench = make()
    grad = torch.randn(SIZES[1])
    bench.window.stash(1, {0: grad})
    back = bench.window.take_gradients(1)
    assert back.keys() == {0}
    assert torch.equal(back[0], grad)
    assert not bench.host.pages[1].grads.present
    bench.window.stash(1, back)
    bench.window.drop_gradients()
    assert bench.window.take_gradients(1) == {}


def test_memory_for_gradients_is_used_again(make: Callable[..., Bench]) -> None:
    bench = make(sizes=(5000,) * 4)
    for _ in range(3):
        for index in range(4):
            bench.window.stash(index, {0: torch.randn(5000)})
        bench.window.issue(bench.ticket())
        bench.host.flush()
    assert [len(buffers) for buffers in bench.window._staging.values()] == [4]
    assert bench.window.memory_bytes == bench.host.memory_bytes + 4 * bench.specs[0].param_bytes


def test_gradients_somebody_holds_stay_theirs(make: Callable[..., Bench]) -> None:
    bench = make(sizes=(5000, 5000))
    grad = torch.randn(5000)
    bench.window.stash(0, {0: grad})
    held = bench.host.take_gradients(0)
    bench.window.stash(1, {0: torch.zeros(5000)})
    assert torch.equal(held[0], grad)


def test_slabs_are_made_once(make: Callable[..., Bench]) -> None:
    bench = make(2, sizes=(5000,) * 6)
    plan = [(index,) for index in (0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0)]
    seen: set[int] = set()
    for _ in range(3):
        bench.window.plan(plan)
        for (index,) in plan:
            bench.window.acquire([index], "forward")
            seen.add(bench.window.slab(index).data_ptr())
            bench.window.release([index])
    assert len(seen) == 2


def test_a_view_that_is_kept_keeps_its_values(make: Callable[..., Bench]) -> None:
    bench = make(1, sizes=(5000, 5000, 5000))
    bench.window.acquire([0], "forward")
    kept = bench.bound[0][0][10:20]
    values = kept.clone()
    bench.window.release([0])
    for index in (1, 2, 1):
        bench.window.acquire([index], "forward")
        bench.require_same(index)
        bench.window.release([index])
    assert torch.equal(kept, values)


def test_closing_leaves_the_host_its_parameters(make: Callable[..., Bench]) -> None:
    bench = make(1)
    bench.window.acquire([2], "forward")
    bench.window.release([2])
    bench.window.close()
    for index, page in enumerate(bench.host.pages):
        pairs = zip(bench.bound[index], page.param_views(), strict=True)
        assert all(there.data_ptr() == here.data_ptr() for there, here in pairs)


def test_the_link_computes_updates(make: Callable[..., Bench]) -> None:
    one, other = make(), make()
    other.host.update_over(other.window.link)
    for bench in (one, other):
        for index, page in enumerate(bench.host.pages):
            for number, view in enumerate(page.param_views()):
                view.copy_(torch.linspace(-1, 1, view.numel()) + index + number)
        for _ in range(2):
            for index, size in enumerate(SIZES):
                bench.window.stash(index, {0: torch.linspace(0, index, size), 1: torch.ones(7)})
            bench.window.issue(bench.ticket())
            bench.host.flush()
    for left, right in zip(one.host.pages, other.host.pages, strict=True):
        for a, b in zip(left.param_views(), right.param_views(), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(left.state, right.state, strict=True):
            assert torch.equal(a.tensor, b.tensor)


def test_the_cpu_needs_no_link() -> None:
    assert open_link(None) is None
    assert open_link("cpu") is None


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("name", ["cuda", "cuda:3", "auto", "abacus"])
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"device='{name}'.*allowed here: 'cpu'.*no accelerator"):
        open_link(name)


class SlowLink(HostLink):
    """The computation runs ahead of copies that are still under way."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[SlowLink.Copy] = []

    class Copy:
        done = False

        def query(self) -> bool:
            return self.done

        def synchronize(self) -> None:
            self.done = True

    def follow(self, event: Event) -> None:
        pass

    def upload(self, target: torch.Tensor, source: torch.Tensor, after: Event) -> Event:
        super().upload(target, source, after)
        self.under_way.append(self.Copy())
        return self.under_way[-1]


def test_the_host_keeps_a_page_until_it_is_copied() -> None:
    link = SlowLink()
    bench = Bench(None, link)
    bench.window.acquire([0, 1], "forward")
    bench.window.release([0, 1])
    assert [page.holds for page in bench.host.pages] == [1, 1, 0, 0, 0]
    link.under_way[1].done = True
    bench.window.acquire([2], "forward")
    assert [page.holds for page in bench.host.pages] == [1, 0, 1, 0, 0]
    bench.window.release([2])
    bench.window.stash(0, {0: torch.ones(SIZES[0])})
    bench.window.issue(bench.ticket())
    assert [page.holds for page in bench.host.pages] == [0, 0, 0, 0, 0]
    bench.window.close()
