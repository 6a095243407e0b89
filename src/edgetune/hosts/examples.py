"""What a device makes of its own file: all of it is trained on there, in the file's order, and nothing leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetune.data.encode import Example
from edgetune.data.reading import load_source
from edgetune.data.shapes import Columns
from edgetune.models.backbone import Backbone
from edgetune.recipe.encoder import Encoder, longest_of, prompt_of
from edgetune.recipe.prepare import recipe_method
from edgetune.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class OwnData:
    """A device's own data.

    Args:
        examples: one a record, in the file's order; never empty.
        shape: how people know the shape of its rows.
        rows: how many there were.
        empty: rows without an answer to train on, which are left out.
        cut: records longer than the recipe's greatest length, which are shortened.
    """

    examples: list[Example]
    shape: str
    rows: int
    empty: int
    cut: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about all this, without a full stop."""
        count = len(self.examples)
        said = [f"{count:,} {'record' if count == 1 else 'records'} ({self.shape}), trained on here"]
        if self.empty:
            said.append(f"{self.empty:,} of {self.rows:,} rows have no answer to train on: left out")
        if self.cut:
            are = "record is" if self.cut == 1 else "records are"
            said.append(f"{self.cut:,} {are} longer than the recipe allows (data.max_tokens) and shortened")
        return tuple(said)


def examples_of_file(
    recipe: Recipe, backbone: Backbone, path: Path, columns: Columns | None
) -> list[Example]:
    """Return the examples of `own_data` alone."""
    return own_data(recipe, backbone, path, columns).examples


def own_data(recipe: Recipe, backbone: Backbone, path: Path, columns: Columns | None) -> OwnData:
    """Read a device's own file and encode it as the recipe says.

    The recipe's prompt, greatest length and method decide, as they do in a run on one machine; its source, test and
    columns are the server's and are not looked at.

    Args:
        recipe: the server's.
        backbone: the device's base model.
        path: a file or a saved data set, in any shape that `data.reading.load_source` reads; never a name on the Hub.
        columns: what a record says, to names of columns, where the file has names of its own.

    Raises:
        DataError: no such file, a broken line, columns of no known shape, no records, or none with an answer.
        ConfigError: the model's context is too short for the recipe's answers, or its chat template loses text.
        MissingExtraError: a parquet file or a saved data set, and `datasets` is not installed.
    Cost: the whole file in memory; tokenising, some thousand records a second.
    """
    loaded = load_source(path, columns=columns)
    prompt = prompt_of(recipe, backbone)
    longest = longest_of(recipe, recipe_method(recipe), backbone)
    with prompt.renderer(backbone.tokenizer) as renderer:
        encode = Encoder(backbone, prompt, renderer, longest)
        examples = encode(loaded.records)
    return OwnData(examples, loaded.shape, loaded.rows, loaded.empty, encode.cut)
