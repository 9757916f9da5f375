"""Pages that open without a network: one HTML file with its style, its script and its data inside."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from openwafer.view.wafer_trace import Trace

_HERE = Path(__file__).parent
MAX_BYTES = 6_000_000
"""Of the samples in a page; longer traces have neighbouring slices added up."""
MAX_EVENTS = 60_000


def write_page(template: str, title: str, data: dict[str, Any], out: Path) -> None:
    """Fill `template`.html with the shared style, a title and data for its script."""
    text = (_HERE / f"{template}.html").read_text()
    # "</" would end the script element; JSON reads "<\/" the same.
    content = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    escaped = title.replace("&", "&amp;").replace("<", "&lt;")
    text = text.replace("{{style}}", (_HERE / "page.css").read_text()).replace("{{title}}", escaped)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text.replace("{{data}}", content))


def fabric_page(content: dict[str, Any], out: Path, title: str = "program") -> None:
    """The routes of a program, color by color, and what lies in each PE; `content` as for `draw_fabric`."""
    write_page("fabric", title, content, out)


def trace_page(trace: Trace, out: Path, title: str = "trace") -> None:
    """Activity and traffic with a slider over time, and what the threads of watched PEs did."""
    width, height = trace.size
    short = trace.joined(max(2, MAX_BYTES // (5 * width * height)))
    events = trace.events[:MAX_EVENTS]
    data = {
        "arch": trace.arch, "width": width, "height": height, "cycles": short.cycles.tolist(),
        "busy": _bytes(short.activity()), "links": _bytes(short.traffic()), "watched": trace.watched,
        "events": np.column_stack([events, trace.event_names[:MAX_EVENTS]]).tolist(), "names": trace.names,
        "left_out": max(0, len(trace.events) - MAX_EVENTS),
    }  # fmt: skip
    write_page("wafer_trace", title, data, out)


def _bytes(shares: np.ndarray) -> str:
    """0 to 1 as base64 of bytes 0 to 255."""
    return base64.b64encode(np.round(255 * shares).astype(np.uint8).tobytes()).decode()
