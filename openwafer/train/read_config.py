"""From a YAML file and ``key=value`` overrides to a checked `RunConfig`, and back.

All faults of a file are reported together, each with its full dotted path, the value, what is allowed, and for an
unknown key the nearest known one.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from openwafer.base.errors import ConfigError
from openwafer.train.config import RunConfig


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as a string (it wants a dot and a sign); everyone means the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that the YAML file ``path`` describes, with ``section.key=value`` overrides laid over it.

    Raises:
        ConfigError: naming every key or value that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {reason}.") from error
    return parse_config(text, overrides, str(path))


def parse_config(text: str, overrides: Sequence[str] = (), source: str = "configuration") -> RunConfig:
    """As `read_config`, from YAML text; ``source`` is what errors call it."""
    tree = _parse_yaml(text, source)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a configuration is sections of keys, got a {_kind(tree)}: {_short(tree)}.")
    for override in overrides:
        _lay_over(tree, override)
    try:
        # Strict JSON rules: "3" is not a number, but a list may be a tuple and a string a path.
        return RunConfig.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(fault) for fault in error.errors()))
        raise ConfigError(f"{source}: " + (lines[0] if len(lines) == 1 else "\n  " + "\n  ".join(lines))) from error


def dump_config(config: RunConfig) -> str:
    """YAML that `parse_config` reads back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _parse_yaml(text: str, source: str) -> Any:
    try:
        # _Loader is a SafeLoader: it builds plain data only.
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source}: not YAML: {reason}") from error


def _lay_over(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form section.key=value, such as train.steps=100.")
    *sections, last = key.split(".")
    node = tree
    for depth, name in enumerate(sections):
        child = node.setdefault(name, {})
        child = node[name] = {} if child is None else child
        if not isinstance(child, dict):
            where = ".".join(sections[: depth + 1])
            raise ConfigError(f"override {override!r}: {where} is a value, not a section.")
        node = child
    node[last] = _parse_yaml(text, f"override {override!r}")


def _explain(fault: ErrorDetails) -> str:
    path = ".".join(str(part) for part in fault["loc"] if str(part) in _PATH_PARTS or isinstance(part, int))
    value = fault["input"]
    match fault["type"]:
        case "extra_forbidden":
            return _explain_unknown(".".join(str(part) for part in fault["loc"]))
        case "missing":
            return f"{path} is missing; it must be set."
        case "value_error":
            reason = str(fault.get("ctx", {}).get("error", fault["msg"])).removeprefix("size: ").rstrip(".")
            return f"{path}: {reason}." if path else f"{reason}."
        case "literal_error":
            return f"{path}: {_short(value)} is not allowed; choose one of {_choices(path)}."
        case _:
            allowed = fault["msg"].removeprefix("Input should be ")
            for theirs, plain in _PLAIN_WORDS.items():
                allowed = allowed.replace(theirs, plain)
            return f"{path}: {_short(value)} is not allowed; it must be {allowed}."


def _explain_unknown(path: str) -> str:
    keys = list(known_keys())
    section, _, name = path.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == section}
    names = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = _SYNONYMS.get(name)
    # The very name in another section, then one like it in this section, then one like it anywhere.
    for candidates, cutoff in ((names, 1.0), (siblings, 0.6), (names, 0.75)):
        if near is None:
            match = difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)
            near = candidates[match[0]] if match else None
    hint = f"did you mean {near}?" if near else f"known there: {', '.join(siblings) or 'nothing'}."
    return f"unknown key {path}; {hint}"


def _choices(path: str) -> str:
    section: type[BaseModel] = RunConfig
    *sections, last = path.split(".")
    for name in sections:
        annotation = section.model_fields[name].annotation
        assert isinstance(annotation, type)
        section = annotation
    return ", ".join(_literals(section.model_fields[last].annotation))


def _literals(annotation: Any) -> Iterator[str]:
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        else:
            yield from _literals(argument)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    names: Mapping[type, str] = {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}
    return names.get(type(value), type(value).__name__)


# What other tools call it.
_SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "max_steps": "train.steps",
    "batch_size": "train.sequences",
    "global_batch_size": "train.sequences",
    "gradient_accumulation_steps": "train.micro_batches",
    "max_grad_norm": "train.clip_norm",
    "grad_clip": "train.clip_norm",
    "dtype": "train.precision",
    "seq_len": "data.sequence_length",
    "max_sequence_length": "data.sequence_length",
    "max_position_embeddings": "model.max_positions",
    "filter_size": "model.ffn_size",
    "intermediate_size": "model.ffn_size",
    "num_hidden_layers": "model.num_layers",
    "model_dir": "run",
    "output_dir": "run",
}

_PLAIN_WORDS = {
    "a valid array": "a list",
    "an object": "a section of keys",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid number": "a number",
}

# What pydantic puts into a location besides our keys (the branch of a union) is left out of a path.
_PATH_PARTS = {part for key in known_keys() for part in key.split(".")}
