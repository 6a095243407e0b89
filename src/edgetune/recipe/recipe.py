"""A recipe: one TOML or YAML file that says everything about a run, validated before anything starts."""

from __future__ import annotations

import json
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from edgetune.core.errors import ConfigError, DataError, nearest
from edgetune.core.event_log import read_events
from edgetune.methods.cards import is_file
from edgetune.recipe.distillation_section import DistillationSection
from edgetune.recipe.method_section import MethodSection, Section
from edgetune.recipe.sections import (
    CompressionSection,
    DataSection,
    EvaluationSection,
    ExportSection,
    FederationSection,
    FleetSection,
    ModelSection,
    PruningSection,
    SplitSection,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


LARGEST = 1_000_000
"""Bytes of a recipe file."""
ANSWERS = ("objective", "answer_tokens")


class Recipe(Section):
    """Everything about a run."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Master seed of every random choice."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of torch and llama.cpp; as many as pay, which is measured, if not set."""
    stages: tuple[str, ...] | None = None
    """What `edgetune run` does, in order (`edgetune stages`); base, tune, round, compress, measure if not set."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    split: SplitSection = SplitSection()
    federation: FederationSection = FederationSection()
    fleet: FleetSection = FleetSection()
    method: MethodSection = MethodSection()
    distillation: DistillationSection = DistillationSection()
    pruning: PruningSection = PruningSection()
    compression: CompressionSection = CompressionSection()
    export: ExportSection = ExportSection()
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def _before_tuning(self) -> tuple[str, ...]:
        stages = self.stages or ()
        return stages[: stages.index("tune")] if "tune" in stages else ()

    @property
    def prunes_first(self) -> bool:
        """Whether what is tuned is a pruned copy of the base that the recipe names."""
        return "prune" in self._before_tuning

    @property
    def tuning_fingerprint(self) -> str:
        """SHA-256 of every setting that decides the tuned weights; compression, display and later stages do not.

        The number of rounds does only where a decay ends, or devices join, with the run: then a longer one is another.
        """
        decays = self.method.schedule not in (None, "constant") and self.method.schedule_steps is None
        decays = decays or self.fleet.joining > 0
        ended = set[str]() if decays else {"rounds"}
        buffered = {"buffer", "staleness_power", "max_staleness"} if self.federation.buffer is None else set()
        kept = self.model_dump(
            exclude={
                "compression": True,
                "export": True,
                "model": {"accept_rounding", "device"},
                # max_new_tokens shortens the examples
                "evaluation": {"every", "batch_size", "samples", "metric", "extract"},
                "federation": {"workers"} | ended | buffered,
                "threads": True,
                "stages": True,
            }
        )
        if self.distillation == DistillationSection():  # runs of versions that had none go on
            del kept["distillation"]
        kept["stages"] = [name for name in self._before_tuning if name != "base"]
        if not self.prunes_first:
            kept.pop("pruning")
        return sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def load_recipe(path: Path | None, overrides: Sequence[str] = (), **settings: object) -> Recipe:
    """Read a recipe and apply overrides, last one wins.

    Args:
        path: a .toml, .yaml or .yml file; None starts from the defaults.
        overrides: `section.key=value` texts; values are read as TOML, and as plain text where that fails.
        settings: dotted keys with double underscores for dots (`model__source="..."`); None values are left out.

    Raises:
        ConfigError: for an unreadable file, an unknown key (with the nearest valid one) or a value out of range; for a
            file that names a method's code, which only whoever runs it may do.
    """
    raw = _read(path) if path is not None else {}
    if is_file(_method(raw).get("name")):
        raise ConfigError(
            "a recipe names no Python file, since that would be executed",
            where=f"{path}: method.name",
            hint="name it in the command: --method FILE, or tune FILE and federate FILE",
        )
    _refuse_rewards_code(raw, path)
    return _resolve(raw, path, overrides, settings)


def _refuse_rewards_code(raw: Mapping[str, Any], path: Path | None) -> None:
    section = raw.get("distillation")
    if isinstance(section, dict) and is_file(section.get("reward")):
        raise ConfigError(
            "a recipe names no Python file, since that would be executed",
            where=f"{path}: distillation.reward",
            hint="name it in the command: --set distillation.reward=FILE",
        )


def _method(raw: Mapping[str, Any]) -> dict[str, Any]:
    section = raw.get("method")
    return section if isinstance(section, dict) else {}


def _resolve(
    raw: dict[str, Any], path: Path | None, overrides: Sequence[str], settings: Mapping[str, object]
) -> Recipe:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"cannot read the override {text!r}", hint="write --set section.key=value")
        _place(raw, key.strip(), _value(value.strip()))
    for name, setting in settings.items():
        if setting is not None:
            _place(raw, name.replace("__", "."), setting)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        given = {text.partition("=")[0].strip() for text in overrides}
        given |= {name.replace("__", ".") for name, setting in settings.items() if setting is not None}
        raise _explain(error, path, given) from error


def recipe_of_run(folder: Path | None, overrides: Sequence[str] = (), **settings: object) -> Recipe:
    """Return the recipe of the last run in a folder, with overrides; the defaults if there was none.

    The run's test and its names of columns belong to its data: other data are without them.

    Args:
        folder: where an `events.jsonl` may lie.
        overrides: as in `load_recipe`.
        settings: as in `load_recipe`.

    Raises:
        ConfigError: as `load_recipe`.
        DataError: if the event log is damaged.
    """
    log = folder / "events.jsonl" if folder is not None else None
    raw: dict[str, Any] = {}
    if log is not None and log.is_file():
        started = [event.get("config") for event in read_events(log) if event["event"] == "run_started"]
        last = started[-1] if started else {}
        if not isinstance(last, dict):
            raise DataError("the run's settings are damaged", where=log)
        raw = last
    if is_file(_method(raw).get("name")):
        # Nothing is trained here, and a folder of somebody else must not have its code executed: what is left of the
        # method is what decides the length of answers.
        raw = {**raw, "method": {key: raw["method"][key] for key in ANSWERS if key in raw["method"]}}
    if settings.get("data__source") is not None and isinstance(raw.get("data"), dict):
        raw["data"] = {key: value for key, value in raw["data"].items() if key not in ("test", "columns")}
    return _resolve(raw, None, overrides, settings)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = _text(path)
        raw = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _PlainLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the recipe", where=path, hint="give a .toml or .yaml file") from error
    except RecursionError as error:
        raise ConfigError("the recipe is nested too deeply", where=path) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # TOML's own error is a ValueError
        raise ConfigError(
            f"the recipe is not valid: {' '.join(str(error).split())[:300]}", where=path
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError("a recipe is a table of sections", where=path)
    return raw


def _text(path: Path) -> str:
    """Read a recipe; a file that is none, because it is too large or not a regular one, is not read.

    Raises:
        ConfigError: saying so.
    """
    if not path.is_file() or path.stat().st_size > LARGEST:
        raise ConfigError(
            f"not a file of at most {LARGEST:,} bytes", where=path, hint="give a .toml or .yaml file"
        )
    return path.read_text(encoding="utf-8")


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few of them name more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed in a recipe")
        return super().compose_node(parent, index)


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError, KeyError):
        return text


def _place(raw: dict[str, Any], dotted: str, value: object) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{section!r} is a value, not a section", where=dotted)
    raw[key] = value


def _known(location: Sequence[str | int]) -> list[str]:
    section: Any = Recipe
    for part in location:
        section = section.model_fields[str(part)].annotation
    return list(section.model_fields)


def _setting(location: Sequence[str | int]) -> Sequence[str | int]:
    """Cut off what pydantic adds behind a setting's name: the member of a union, a place in a table."""
    section: Any = Recipe
    for depth, part in enumerate(location):
        field = section.model_fields.get(str(part))
        kind = field.annotation if field else None
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            return location[: depth + 1]
        section = kind
    return location


def _explain(error: ValidationError, path: Path | None, given: set[str]) -> ConfigError:
    """Turn pydantic's first complaint into one sentence; the file is named unless the command line set the key."""
    first = error.errors()[0]
    where = _setting(first["loc"])
    key = ".".join(str(part) for part in where)
    typed = any(one == key or one.startswith(f"{key}.") for one in given)
    source = f"{path}: " if path is not None and not typed else ""
    if first["type"] == "extra_forbidden":
        known = _known(where[:-1])
        close = nearest(str(where[-1]), known)
        hint = f"did you mean {close!r}?" if close else f"known here: {', '.join(known)}"
        return ConfigError("no such setting", where=f"{source}{key}", hint=hint)
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        near = nearest(str(first["input"]), known)
        advice = f"did you mean {near!r}?" if near else None
        what = f"must be one of {', '.join(known)}, got {reprlib.repr(first['input'])}"
        return ConfigError(what, where=f"{source}{key}", hint=advice)
    return ConfigError(f"{first['msg'].lower()}, got {reprlib.repr(first['input'])}", where=f"{source}{key}")


def describe_settings(section: type[Section] = Recipe, prefix: str = "") -> Mapping[str, tuple[object, str]]:
    """Return every dotted setting with its default and one-line description."""
    found: dict[str, tuple[object, str]] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found.update(describe_settings(kind, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = (field.default, (field.description or "").replace("\n", " "))
    return found
