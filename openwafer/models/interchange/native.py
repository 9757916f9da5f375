"""Our own folder: `decoder.json` and safetensors under the decoder's own names.

What `openwafer convert` makes of other formats so that a run may begin from it, and what a run is exported as.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from openwafer.base.errors import CheckpointError
from openwafer.models.config import Alibi, DecoderConfig, Experts, Learned, MuP, RopeScaling, Rotary

CONFIG_FILE = "decoder.json"
_POSITIONS = {"learned": Learned, "rotary": Rotary, "alibi": Alibi}


def config_to_json(config: DecoderConfig) -> str:
    """The configuration as text that `config_from_json` gives back exactly."""
    value = dataclasses.asdict(config)
    kind = next(name for name, part in _POSITIONS.items() if isinstance(config.positions, part))
    value["positions"] = {"kind": kind, **value["positions"]}
    return json.dumps(value, indent=2) + "\n"


def config_from_value(value: dict[str, Any], source: Path) -> DecoderConfig:
    """The configuration that `config_to_json` wrote, parsed.

    Raises:
        CheckpointError: it is not one.
    """
    value = dict(value)
    try:
        positions = dict(value.pop("positions"))
        kind = _POSITIONS[positions.pop("kind")]
        if positions.get("scaling") is not None:
            positions["scaling"] = RopeScaling(**positions["scaling"])
        value["positions"] = kind(**positions)
        for name, part in (("experts", Experts), ("mup", MuP)):
            if value.get(name) is not None:
                value[name] = part(**value[name])
        return DecoderConfig(**value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source} does not describe a decoder: {error}") from error
