"""What a step will take, before it takes it; the numbers come from the plan and from a probe of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from openwafer.base.units import format_bytes, format_count, format_seconds


@dataclass(frozen=True)
class Forecast:
    """Predicted needs of a run.

    Attributes:
        state_bytes: parameters, gradients and optimizer state.
        peak_bytes: largest resident set of the process.
        disk_bytes: space the store takes; both slots of every page.
        read_bytes, write_bytes: disk traffic of a step.
        group: how many of the `micro_batches` of a step run together, layer by layer.
        compute_s, io_s, update_s: seconds of a step's arithmetic, traffic and optimizer; the traffic runs beside them.
        device_budget_bytes, device_peak_bytes: of the device that computes; link_bytes: to it and back in a step.
    """

    num_parameters: int
    state_bytes: int
    budget_bytes: int | None
    peak_bytes: int
    disk_bytes: int
    read_bytes: int
    write_bytes: int
    kept_layers: int
    num_layers: int
    compute_s: float
    io_s: float
    update_s: float
    device_budget_bytes: int | None = None
    device_peak_bytes: int = 0
    link_bytes: int = 0
    micro_batches: int = 1
    group: int = 1

    @property
    def step_s(self) -> float:
        """Seconds a step."""
        return max(self.compute_s + self.update_s, self.io_s)

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each line of a table."""
        budget = "no limit" if self.budget_bytes is None else f"of {format_bytes(self.budget_bytes)}"
        traffic = "the disk" if not self.device_peak_bytes else "the disk or the link to the device"
        bound = "arithmetic" if self.compute_s + self.update_s >= self.io_s else traffic
        rows = [
            ("parameters", format_count(self.num_parameters)),
            ("training state", f"{format_bytes(self.state_bytes)} (parameters, gradients, optimizer state)"),
            ("peak memory", f"{format_bytes(self.peak_bytes)} {budget}"),
            ("activations", f"{self.kept_layers} of {self.num_layers} layers keep theirs, the others recompute"),
            ("seconds a step", f"{format_seconds(self.step_s)}, bound by {bound}"),
        ]
        if self.micro_batches > 1:
            together = "all together" if self.group == self.micro_batches else f"{self.group} at a time"
            rows.insert(4, ("micro-batches", f"{self.micro_batches} a step, {together} through every layer"))
        if self.device_budget_bytes is not None:
            of = f"of {format_bytes(self.device_budget_bytes)}"
            rows += [
                ("peak device memory", f"{format_bytes(self.device_peak_bytes)} {of}"),
                ("link traffic a step", format_bytes(self.link_bytes)),
            ]
        if self.disk_bytes:
            rows += [
                ("disk space", format_bytes(self.disk_bytes)),
                (
                    "disk traffic a step",
                    f"{format_bytes(self.read_bytes)} read, {format_bytes(self.write_bytes)} written",
                ),
                ("disk wear", f"{format_bytes(1000 * self.write_bytes)} written in 1,000 steps"),
            ]
        return rows
