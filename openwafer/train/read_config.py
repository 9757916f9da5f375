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
from openwafer.train.modelzoo.translate import TrainerFileError, is_trainer_file, translate


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
    return read_with_notes(path, overrides)[0]


def read_with_notes(path: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, list[str]]:
    """As `read_config`; with it what is to be said of a ModelZoo trainer file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {reason}.") from error
    return parse_with_notes(text, overrides, str(path))


def parse_config(text: str, overrides: Sequence[str] = (), source: str = "configuration") -> RunConfig:
    """As `read_config`, from YAML text; ``source`` is what errors call it."""
    return parse_with_notes(text, overrides, source)[0]


def parse_with_notes(
    text: str, overrides: Sequence[str] = (), source: str = "configuration"
) -> tuple[RunConfig, list[str]]:
    """As `parse_config`; with it what is to be said of a ModelZoo trainer file."""
    tree, notes = _parse_yaml(text, source), []
    tree = {} if tree is None else tree
    if is_trainer_file(tree):
        overrides = _lay_over_theirs(tree, overrides)
        try:
            translation = translate(tree)
        except TrainerFileError as error:
            raise ConfigError(f"{source}: {error}") from error
        tree, notes = translation.tree, translation.notes
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a configuration is sections of keys, got a {_kind(tree)}: {_short(tree)}.")
    return _validated(_with_phases(tree, overrides, source), source), notes


def _with_phases(tree: dict[str, Any], overrides: Sequence[str], source: str) -> dict[str, Any]:
    """Every phase as a whole tree; an override that names no phase goes for all of them."""
    phases = tree.pop("phases", None) or []
    if not isinstance(phases, list) or not all(isinstance(phase, dict) for phase in phases):
        raise ConfigError(f"{source}: phases must be a list of sections, got {_short(phases)}.")
    for override in overrides:
        if not override.startswith("phases."):
            _lay_over(tree, override)
    trees = [_merged(tree, phase) for phase in phases]
    for override in overrides:
        number, _, rest = override.removeprefix("phases.").partition(".")
        if not override.startswith("phases."):
            for phase in trees:
                _lay_over(phase, override)
        elif number.isdigit() and int(number) < len(trees) and rest:
            _lay_over(trees[int(number)], rest)
        else:
            raise ConfigError(f"override {override!r}: there are {len(trees)} phases, counted from 0, as phases.0.KEY.")
    return {**trees[0], "phases": trees} if trees else tree


def _merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with ``over`` laid over it, section by section; a list or a value replaces what was there."""
    merged = {key: _merged(value, {}) if isinstance(value, Mapping) else value for key, value in tree.items()}
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _lay_over_theirs(tree: Any, overrides: Sequence[str]) -> list[str]:
    """Lay overrides of a trainer file's own keys over it; the others are left."""
    theirs = [override for override in overrides if override.startswith("trainer.")]
    if theirs and not isinstance(tree, dict):
        raise ConfigError(f"override {theirs[0]!r}: the file is a list of trainers; use our own keys, as phases.0.KEY.")
    for override in theirs:
        _lay_over(tree, override)
    return [override for override in overrides if override not in theirs]


def _validated(tree: dict[str, Any], source: str) -> RunConfig:
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
        for below in _sections(field.annotation):
            if below is not RunConfig:
                yield from known_keys(below, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections in an annotation, such as the one in `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


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
            return _explain_unknown([str(part) for part in fault["loc"]])
        case "missing":
            return f"{path} is missing; it must be set."
        case "value_error":
            reason = str(fault.get("ctx", {}).get("error", fault["msg"])).removeprefix("size: ").rstrip(".")
            return f"{path}: {reason}." if path else f"{reason}."
        case "literal_error":
            choices = fault.get("ctx", {}).get("expected", "").replace("'", "").replace(" or ", ", ")
            return f"{path}: {_short(value)} is not allowed; choose one of {choices}."
        case _:
            allowed = fault["msg"].removeprefix("Input should be ")
            for theirs, plain in _PLAIN_WORDS.items():
                allowed = allowed.replace(theirs, plain)
            return f"{path}: {_short(value)} is not allowed; it must be {allowed}."


def _explain_unknown(parts: list[str]) -> str:
    keys, path = list(known_keys()), ".".join(parts)
    if parts[0] == "phases":  # a phase has the sections of a run
        parts = parts[2:]
    section, _, name = ".".join(parts).rpartition(".")
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
