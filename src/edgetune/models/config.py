"""The configuration of a model folder, refused where it is absurd before anything is built from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from edgetune.core.errors import ModelError
from edgetune.models.by_layer import WIDTHS_FILE, config_by_layer
from edgetune.models.packing import packing_in
from edgetune.models.tokenizer import first_line
from edgetune.models.weights import read_json

LARGEST = 16 << 20
"""Bytes of a configuration file."""
JSON_FILES = (
    WIDTHS_FILE,
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_COUNTS = re.compile("layer|block|head|expert|depth|stage")
_FREE = 1000
"""Numbers up to this one are believed: a thousand layers are built in a second."""


def load_config(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> PreTrainedConfig:
    """Read `config.json`, with transformers, after checking that its counts can be those of the weights.

    A layer, head or expert has at least one tensor, or one index of a dimension. A configuration that counts more of
    them than the weight files can hold would be built for hours before the weights turn out not to fit.

    Args:
        folder: a Hugging Face model folder.
        shapes: of the stored tensors.

    Raises:
        ModelError: not JSON, too large, nested too deeply, an unknown model, one quantised in a way that is not read,
            or absurd counts; names the file and the field.
    """
    for name in JSON_FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = read_json(file, LARGEST)
        except (ValueError, OSError) as error:
            raise ModelError(f"cannot use this configuration: {first_line(error)}", where=file) from error
        if name == "config.json":
            _check_counts(
                content, max(_FREE, len(shapes), *(max(shape, default=0) for shape in shapes.values())), file
            )
    file = folder / "config.json"
    try:
        config: Any = (
            config_by_layer(folder)
            if (folder / WIDTHS_FILE).is_file()
            else AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        )
    except ModelError:
        raise
    except Exception as error:  # the library raises many unrelated types
        raise ModelError(f"cannot use this configuration: {first_line(error)}", where=file) from error
    if getattr(config, "quantization_config", None) is not None:
        packing_in(folder)  # refuses what is not read here
        del config.quantization_config  # the layers of the model are plain ones
    return config  # type: ignore[no-any-return]


def _check_counts(content: Any, most: int, file: Path) -> None:
    left: list[tuple[str, Any]] = [("", content)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(key, inner) for inner in value if isinstance(inner, (dict, list))]
        elif isinstance(value, (int, float)) and value > most and _COUNTS.search(key) and "dim" not in key:
            raise ModelError(
                f"{key[:80]} is {value:g}, more than the weight files have room for",
                where=file,
                hint="copy it again",
            )
