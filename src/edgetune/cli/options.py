"""Options that set a recipe key, declared once; a command names those it takes and gets them as one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetune.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from edgetune.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class RecipeOption:
    """A command-line option that sets a recipe key.

    Args:
        key: the dotted key.
        kind: type of its value.
        help: one line.
        flags: its spellings; `--name` if none are given.
        default: what help says it is otherwise; a test holds it against the recipe.
        read: makes the value of what was typed, if that is not it.
    """

    key: str
    kind: type
    help: str
    flags: tuple[str, ...] = ()
    default: str | None = None
    read: Callable[[str], object] | None = None


def columns(text: str) -> dict[str, str]:
    """Read `instruction=question,response=answer`.

    Raises:
        ConfigError: a part of it is no pair, or says something twice.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    found = {key.strip(): name.strip() for key, _, name in pairs}
    if not all(equals for _, equals, _ in pairs) or len(found) < len(pairs):
        hint = "--columns instruction=COLUMN,response=COLUMN"
        raise ConfigError(f"cannot read {text!r}", where="--columns", hint=hint)
    return found


RECIPE_OPTIONS = {
    "model": RecipeOption(
        "model.source", str, "Model folder, GGUF file, Hub id, or 'embedded'.", default="embedded"
    ),
    "device": RecipeOption(
        "model.device",
        str,
        "auto, cpu, cuda, cuda:N or mps; auto takes a CUDA GPU if there is one.",
        default="auto",
    ),
    "residency": RecipeOption(
        "model.residency",
        str,
        "Where weights live: fused, streamed, streamed-q8_0 or streamed-q4_0 (see settings).",
        default="fused",
    ),
    "data": RecipeOption(
        "data.source",
        str,
        "File (jsonl, json, csv, tsv, txt, parquet), datasets id, or 'embedded'.",
        ("--data", "--train-data"),
        default="embedded",
    ),
    "test_data": RecipeOption(
        "data.test", str, "All of it is held out for evaluation, and nothing of --data.", ("--test-data",)
    ),
    "columns": RecipeOption(
        "data.columns", str, "Names of columns: instruction=question,response=answer.", read=columns
    ),
    "held_out_category": RecipeOption(
        "data.held_out_category", str, "A category no device sees, used for evaluation."
    ),
    "metric": RecipeOption(
        "evaluation.metric",
        str,
        "Score beside Rouge-L: exact_match, accuracy, token_f1 or rouge_l (none).",
        default="auto",
    ),
    "extract": RecipeOption(
        "evaluation.extract",
        str,
        "What counts in an answer: last_number, first_line, letter or regex:PATTERN.",
    ),
    "devices": RecipeOption("federation.devices", int, "Devices; 20, or fewer where records are few."),
    "participation": RecipeOption(
        "federation.participation", float, "Share of the devices asked in a round, 0 to 1.", default="0.1"
    ),
    "alpha": RecipeOption("split.alpha", float, "Dirichlet concentration of the split.", default="0.5"),
    "rounds": RecipeOption(
        "federation.rounds",
        int,
        "Rounds; on one device, intervals of method.local_steps steps.",
        default="the recipe's",
    ),
    "method": RecipeOption(
        "method.name", str, "Tuning method, see `edgetune methods`, or a .py file.", default="fedkseed"
    ),
    "teacher": RecipeOption("distillation.teacher", str, "A model to learn from, in place of the loss."),
    "learning_rate": RecipeOption(
        "method.learning_rate",
        str,
        "Learning rate; auto finds one for this model, method and data.",
        ("--learning-rate", "--lr"),
        default="auto",
    ),
    "compression": RecipeOption(
        "compression.name", str, "gptaq, optq, joint: see `edgetune methods`.", ("--method",), default="gptaq"
    ),
    "grid": RecipeOption(
        "compression.grid",
        str,
        "GGUF block type: Q2_K ... Q6_K, Q4_0 ... Q8_0, IQ4_NL, NVFP4, ...; Q4_0, where a method only prunes F16.",
    ),
    "size": RecipeOption(
        "compression.size",
        str,
        "In place of a grid: size of the file, 4.5bpw or 1.2GB; every matrix gets the grid that suits it.",
    ),
    "sparsity": RecipeOption(
        "compression.sparsity", str, "Share of the weights that go, of methods that prune (0.5), or 2:4."
    ),
    "calibration": RecipeOption(
        "compression.calibration",
        str,
        "A text (.txt) or records to calibrate on; else records that are not held out.",
    ),
    "calibration_tokens": RecipeOption(
        "compression.calibration_tokens",
        int,
        "Tokens to calibrate on; 16384, or four times the widest input if that is more.",
    ),
    "seed": RecipeOption("seed", int, "Master seed of every random choice.", default="0"),
    "threads": RecipeOption(
        "threads", int, "CPU threads; as many as pay if not set.", default="the recipe's"
    ),
}
"""By parameter name, in the order in which help shows them."""

Set = Annotated[
    list[str], typer.Option("--set", help="Override a recipe key: section.key=value. Repeatable.")
]
RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        help="A recipe (.toml, .yaml), or the name of a packaged one: smollm2, cross_silo, cross_device.",
        show_default=False,
    ),
]


def folder(name: str | Path) -> Path:
    """Read the name of a folder for results; typer passes the default through here as well.

    Raises:
        OutputError: if it is empty; an empty name would be the present folder.
    """
    if not str(name).strip():
        raise OutputError("the name of the output folder is empty", where="--out", hint="name a folder")
    return Path(name)


Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        parser=folder,
        metavar="FOLDER",
        help="Folder for the results; an unfinished run there goes on.",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER[:FOLDER]",
        help="Write the run's numbers as curves too: tensorboard (into OUT/tensorboard). Repeatable.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command line says about a recipe.

    Args:
        recipe: a recipe file, if one is named.
        overrides: the texts of `--set`.
        settings: dotted key to value; None where the option was not given.
        given: the options that were given, as (flag, value), to be said again.
    """

    recipe: Path | None
    overrides: list[str]
    settings: dict[str, Any]
    given: list[tuple[str, str]]

    def resolve(self, **more: object) -> Recipe:
        """Return the recipe: the file's or, for the embedded model, the packaged one; then options, then `--set`.

        A packaged recipe is for its own model: another one starts from the published defaults.

        Args:
            more: further settings, dots written as two underscores.
        """
        from edgetune.models.embedded import EMBEDDED
        from edgetune.recipe.open_settings import packaged_recipe
        from edgetune.recipe.recipe import load_recipe

        settings = self._named() | more
        if self.recipe is not None:
            shipped = None if self.recipe.exists() else packaged_recipe(str(self.recipe))
            return load_recipe(shipped or self.recipe, self.overrides, **settings)
        own = packaged_recipe(settings.get("method__name") or "demo")
        first = load_recipe(own, self.overrides, **settings)
        return first if first.model.source == EMBEDDED else load_recipe(None, self.overrides, **settings)

    def of_run(self, folder: Path | None, **more: object) -> Recipe:
        """Return the recipe of the run in a folder, with these settings on top."""
        from edgetune.recipe.recipe import recipe_of_run

        return recipe_of_run(folder, self.overrides, **(self._named() | more))

    def _named(self) -> dict[str, Any]:
        return {key.replace(".", "__"): value for key, value in self.settings.items()}


def asking(*names: str, file: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these names and `--set`, as its parameter `asked`.

    Args:
        names: keys of RECIPE_OPTIONS.
        file: also take a recipe file as the last argument.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        taken = inspect.signature(command, eval_str=True).parameters.values()
        own = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in taken if one.name != "asked"]
        needed = [one for one in own if one.default is Parameter.empty]
        signature = inspect.Signature(
            [*needed, *_parameters(names, file=file), *(one for one in own if one not in needed)]
        )

        def call(**given: Any) -> None:
            options = {name: given.pop(name) for name in names}
            settings = {RECIPE_OPTIONS[name].key: _read(name, value) for name, value in options.items()}
            said = [(_flags(name)[0], str(value)) for name, value in options.items() if value is not None]
            asked = Asked(given.pop("recipe", None), given.pop("set"), settings, said)
            command(asked=asked, **given)

        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        return call

    return decorate


def _parameters(names: tuple[str, ...], *, file: bool) -> list[Parameter]:
    made = [_keyword("recipe", RecipeFile, None)] if file else []
    for name in names:
        option = RECIPE_OPTIONS[name]
        kind: Any = option.kind | None
        shown = (
            option.default if file or option.default is None else f"the ledger's run's, else {option.default}"
        )
        annotation = Annotated[
            kind, typer.Option(*_flags(name), help=option.help, show_default=shown or False)
        ]
        made.append(_keyword(name, annotation, None))
    return [*made, _keyword("set", Set, [])]


def _read(name: str, value: Any) -> Any:
    read = RECIPE_OPTIONS[name].read
    return value if read is None or value is None else read(value)


def _keyword(name: str, annotation: Any, default: object) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flags(name: str) -> tuple[str, ...]:
    return RECIPE_OPTIONS[name].flags or (f"--{name.replace('_', '-')}",)
