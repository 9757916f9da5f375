"""The folder of a run: what lies where, when a run may begin in it, and when one goes on.

RUN/config.yaml      the resolved configuration; its presence makes the folder a run
RUN/store/           weights, moments, manifest: the working state and the checkpoint
RUN/events.jsonl     one record a step
RUN/tokenizer.json   copy of the data's tokenizer, for `generate`
RUN/curves.png       what `view` draws
"""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openwafer.base.errors import ConfigError, RunError
from openwafer.train.config import STORE, RunConfig
from openwafer.train.read_config import dump_config, parse_config

# What may change when a run goes on without changing what its steps compute, or only how many there are.
MAY_CHANGE = (
    "train.steps",
    "train.commit_every",
    "train.validate_every",
    "train.validation_batches",
    "memory",
    "device_memory",
    "log",
)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def tensorboard_dir(self) -> Path:
        return self.path / "tensorboard"

    @property
    def resume_command(self) -> str:
        return f"openwafer resume {self.path}"

    def require_new(self) -> None:
        """Raise RunError if there is a run here already."""
        if self.config_file.exists():
            raise RunError(
                f"{self.path} already holds a run. Go on with it: {self.resume_command} ; or begin another: "
                "run=OTHER_FOLDER ; or remove the folder."
            )

    def begin(self, config: RunConfig, tokenizer_file: Path) -> None:
        """Make the folder and write what a resume will need."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if tokenizer_file.exists():
                shutil.copyfile(tokenizer_file, self.tokenizer_file)
        except OSError as error:
            raise RunError(f"cannot make the run folder {str(self.path)!r}: {error.strerror}.") from error
        self.save(config)

    def save(self, config: RunConfig) -> None:
        """Write the configuration, whole or not at all."""
        partial = self.config_file.with_suffix(".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(dump_config(config))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.config_file)
        except OSError as error:
            raise RunError(f"cannot write {self.config_file}: {error.strerror}.") from error

    def forget(self) -> None:
        """Take back `begin` and what came of it: a run without a step must not be in the way of the next attempt."""
        for file in (self.config_file, self.tokenizer_file, self.events_file):
            file.unlink(missing_ok=True)
        for folder in (self.path / STORE, self.tensorboard_dir):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # something else is in it
            self.path.rmdir()

    def load(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The configuration of the run that is here, with changes that a run may take when it goes on.

        Raises:
            RunError: there is no run here.
            ConfigError: an override would change what the steps compute.
        """
        try:
            text = self.config_file.read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{str(self.path)!r} is not a run: it has no config.yaml; `openwafer fit` makes one. "
                "Give the folder that the configuration names as run."
            ) from error
        for override in overrides:
            key = re.sub(r"^phases\.\d+\.", "", override.partition("=")[0])
            if not any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE):
                raise ConfigError(
                    f"{override!r} would change what the run computes; when a run goes on it can take "
                    f"{', '.join(MAY_CHANGE)}. For anything else begin another run."
                )
        # A moved folder goes on where it is now.
        return parse_config(text, [f"run={self.path}", *overrides], str(self.config_file))


def resolved(config: RunConfig) -> RunConfig:
    """``config`` with what must not depend on the working directory or on later changes written out."""
    data = config.data
    absolute: dict[str, Any] = {"path": [folder.absolute() for folder in data.folders]}
    if data.form == "shards":
        absolute["path"] = data.folders[0].absolute()
    if data.validation_path is not None:
        absolute["validation_path"] = [folder.absolute() for folder in data.validation_folders]
    phases = [resolved(phase) for phase in config.phases]
    return config.model_copy(
        update={
            "data": data.model_copy(update=absolute),
            "schedule": config.schedule.model_copy(update={"total_steps": config.total_steps}),
            "store": None if config.store is None else config.store.absolute(),
            "phases": phases,
        }
    )
