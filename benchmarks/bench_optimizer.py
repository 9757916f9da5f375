"""Rate of the AdamW update: the native kernels against torch, in Mparam/s. Run: python benchmarks/bench_optimizer.py

All rows are run in turn, round after round, so that a noisy machine disturbs them alike; the median counts.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from openwafer.streaming import kernels
from openwafer.streaming.update import CHUNK_MULTIPLE, OptimizerSpec, apply, snapshot


def torch_row(count: int, threads: int, **options) -> Callable[[], None]:
    """One step of torch.optim.AdamW, clipping included, on `threads` threads of torch's own pool."""
    param = torch.nn.Parameter(torch.randn(count))
    param.grad = torch.randn(count)
    optimizer = torch.optim.AdamW([param], **options)
    coef = torch.tensor(1.0)

    def step() -> None:
        torch.set_num_threads(threads)
        param.grad.mul_(coef)
        optimizer.step()

    return step


def native_row(
    count: int, threads: int, pool: ThreadPoolExecutor, *, grad=torch.float32, moments=torch.float32, **options
) -> Callable[[], None]:
    """One step of `update.apply`, the caller cutting the parameter into one piece per thread."""
    p, g = torch.randn(count), torch.randn(count).to(grad)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], **options)
    spec, hyper = OptimizerSpec.of(optimizer, moments=moments), snapshot(optimizer.param_groups[0])
    state = {name: torch.zeros(count, dtype=moments) for name in ("exp_avg", "exp_avg_sq")}
    size = -(-count // threads // CHUNK_MULTIPLE) * CHUNK_MULTIPLE
    clock = iter(range(1, 1 << 30))

    def piece(step: int, start: int) -> None:
        cut = slice(start, start + size)
        views = {name: tensor[cut] for name, tensor in state.items()}
        apply(spec, hyper, step, p[cut], g[cut], views, 1.0, element=start)

    def step() -> None:
        list(pool.map(functools.partial(piece, next(clock)), range(0, count, size)))

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    count, bf16 = args.params, torch.bfloat16
    print(f"torch {torch.__version__}; native flavours: fused in {sorted(kernels.flavours())}; {count:,} parameters")
    with ThreadPoolExecutor(2) as pool:
        rows = {
            "torch for-loop, 1 thread": torch_row(count, 1),
            "torch for-loop, 2 threads": torch_row(count, 2),
            "torch fused, 1 thread": torch_row(count, 1, fused=True),
            "torch fused, 2 threads": torch_row(count, 2, fused=True),
            "native, for-loop bits, 1 thread": native_row(count, 1, pool),
            "native, for-loop bits, 2 threads": native_row(count, 2, pool),
            "native, fused bits, 1 thread": native_row(count, 1, pool, fused=True),
            "native, fused bits, 2 threads": native_row(count, 2, pool, fused=True),
            "native, fused bits, bf16 gradient, 2 threads": native_row(count, 2, pool, grad=bf16, fused=True),
            "native, bf16 gradient and moments, 1 thread": native_row(
                count, 1, pool, grad=bf16, moments=bf16, fused=True
            ),
            "native, bf16 gradient and moments, 2 threads": native_row(
                count, 2, pool, grad=bf16, moments=bf16, fused=True
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in rows}
        for turn in range(args.rounds + 1):
            for name, step in rows.items():
                start = time.perf_counter()
                step()
                if turn:  # the first round pays for page faults
                    times[name].append(time.perf_counter() - start)
    print(f"{'AdamW with clipping':<48}{'median':>10}{'best':>10}  Mparam/s")
    for name, seconds in times.items():
        print(f"{name:<48}{count / statistics.median(seconds) / 1e6:>10.0f}{count / min(seconds) / 1e6:>10.0f}")


if __name__ == "__main__":
    main()
