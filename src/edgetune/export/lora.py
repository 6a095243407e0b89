"""Adapters beside a GGUF file: which are loaded, and which of them an answer is computed with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.gguf_read import GgufFile, read_gguf
from edgetune.core.reasons import shortened

MOST_SCALE = 100.0
"""Beyond it nothing of the model is left, and a typing error is likelier."""
LEFT, RIGHT = ".lora_b", ".lora_a"
EMBEDDING = "token_embd.weight"
OFF = "off"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA file in llama.cpp's form, and how strongly it counts: W + scale (alpha / r) B A.

    Args:
        path: what `edgetune adapter` or `convert_lora_to_gguf.py` wrote.
        scale: a factor beside the file's own, in [-100, 100]; 0 loads it and leaves it off.

    Raises:
        ConfigError: for a scale out of range.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        _checked(self.scale, str(self.path))

    @classmethod
    def of(cls, text: str) -> Adapter:
        """Return what `FILE` or `FILE:SCALE` means; a file of that whole name comes first.

        Raises:
            ConfigError: for a scale out of range.
        """
        name, scale = _split(text)
        if Path(text).exists() or scale is None:
            return cls(Path(text))
        return cls(Path(name), scale)


def labels(paths: Sequence[Path]) -> list[str]:
    """Return a name for each of some files: the last parts of its path that tell it from the others."""
    for parts in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = [str(Path(*path.parts[-parts:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, start=1)]


def check_adapter(adapter: Adapter, base: GgufFile) -> None:
    """Refuse a file that llama.cpp could not put on this base, or would not read as an adapter.

    Raises:
        ModelError: if it is no GGUF file of a LoRA, or a matrix of it has no place in the base.
    Cost: the header of the file.
    Source: `llama_adapter_lora_init` of llama.cpp.
    """
    file = read_gguf(adapter.path)
    if file.metadata.get("general.type") != "adapter" or file.metadata.get("adapter.type") != "lora":
        hint = "edgetune adapter LEDGER --base BASE --out FILE.gguf makes one of a LoRA ledger"
        raise ModelError("this GGUF file is no LoRA adapter", where=adapter.path, hint=hint)
    family, own = file.metadata.get("general.architecture"), base.metadata.get("general.architecture")
    if family != own:
        raise ModelError(f"an adapter of a {family} cannot go on a {own}", where=adapter.path)
    shapes = {tensor.name: tensor.shape for tensor in base.tensors}
    parts = {tensor.name: tensor.shape for tensor in file.tensors}
    for name in sorted({part.removesuffix(LEFT).removesuffix(RIGHT) for part in parts}):
        given = tuple(parts.get(name + end, ()) for end in (LEFT, RIGHT))
        if not _fits(given, shapes.get(name, ()), name):
            raise ModelError(
                f"the adapter's {name} fits no matrix of {base.path.name}",
                where=adapter.path,
                hint="it belongs to another base",
            )


def chosen(words: Sequence[str], adapters: Sequence[Adapter]) -> list[float]:
    """Return the scale of every loaded adapter when these are to be on, the others off.

    Args:
        words: `NAME` (at its own scale) or `NAME:SCALE` each, with or without `.gguf`; the one word `off` for none.
        adapters: what is loaded.

    Raises:
        ConfigError: for an unknown name, one that is said twice, or a scale out of range.
    """
    scales = [0.0] * len(adapters)
    if list(words) == [OFF]:
        return scales
    names = labels([adapter.path for adapter in adapters])
    known = {name: place for place, name in enumerate(names)}
    short = {name.removesuffix(".gguf"): place for name, place in known.items()}
    done: set[int] = set()
    for word in words:
        name, scale = (word, None) if word in known else _split(word)
        place = known.get(name, short.get(name))
        if place is None or place in done:
            what = "no adapter of that name is loaded" if place is None else "said twice"
            raise ConfigError(what, where=word, hint=f"loaded: {', '.join(names) or 'none'}")
        done.add(place)
        own = adapters[place].scale or 1.0
        scales[place] = _checked(own if scale is None else scale, word)
    return scales


def shown(adapters: Sequence[Adapter], scales: Sequence[float]) -> str:
    """Return one line a loaded adapter: its name, and its scale or that it is off."""
    names = labels([adapter.path for adapter in adapters])
    return "".join(
        f"  {name}  {f'{scale:g}' if scale else OFF}\n" for name, scale in zip(names, scales, strict=True)
    )


def listed(adapters: Sequence[Adapter], scales: Sequence[float]) -> list[dict[str, Any]]:
    """Return what `GET /lora-adapters` of llama.cpp's server says of them, but for their folders."""
    names = labels([adapter.path for adapter in adapters])
    return [
        {"id": place, "path": name, "scale": scale}
        for place, (name, scale) in enumerate(zip(names, scales, strict=True))
    ]


def scales_of(body: bytes, adapters: Sequence[Adapter]) -> list[float]:
    """Return the scales that `POST /lora-adapters` asks for: `[{"id": 0, "scale": 0.5}]`, the others off.

    Raises:
        ConfigError: if it is not of this form, names an adapter twice or one that is not loaded, or a scale is out of
            range. llama.cpp itself takes what it does not understand for "all off".
    """
    scales = _named(_parsed(body), len(adapters), "/lora-adapters")
    return [scales.get(place, 0.0) for place in range(len(adapters))]


def with_scales(body: bytes, scales: Sequence[float], last: Any) -> tuple[bytes, Any]:
    """Return a request that says the scales, unless it says some itself (`lora`, llama.cpp's own field), and these.

    Where they are others than those of the request before, keys and values of its prompt are not used: llama.cpp would
    (its issue 26207, and after every `POST /lora-adapters`).

    Args:
        body: the request.
        scales: of every loaded adapter.
        last: what this function returned of the request before; None for the first.

    Raises:
        ConfigError: if the request is no JSON, or its own field is not as in `scales_of`.
    """
    request = _parsed(body)
    if not isinstance(request, dict):
        return body, last
    own = request.get("lora")
    if own is not None:
        _named(own, len(scales), "lora")
    if not scales:
        return body, last
    request["lora"] = own or [{"id": place, "scale": scale} for place, scale in enumerate(scales)]
    if request["lora"] != last:
        request["cache_prompt"] = False
    return json.dumps(request).encode(), request["lora"]


def _named(asked: Any, many: int, where: str) -> dict[int, float]:
    """Return the scales of a list of entries, by the adapters' places."""
    scales: dict[int, float] = {}
    for entry in asked if isinstance(asked, list) else [None]:
        said = entry if isinstance(entry, dict) else {}
        place, scale = said.get("id"), said.get("scale")
        if type(place) is not int or not isinstance(scale, (int, float)) or isinstance(scale, bool):
            raise ConfigError(f'{where}: a list of {{"id": NUMBER, "scale": NUMBER}} is expected')
        if place not in range(many) or place in scales:
            raise ConfigError(f"{where}: no adapter {shortened(str(place), 20)} of {many}, or said twice")
        scales[place] = float(_checked(scale, where))
    return scales


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # Unicode's error is a ValueError
        raise ConfigError("the request is no JSON") from error


def _fits(given: tuple[tuple[int, ...], ...], matrix: tuple[int, ...], name: str) -> bool:
    left, right = given
    if len(matrix) < 2 or len(left) < 2 or len(right) < 2:
        return False
    if name == EMBEDDING:  # looked up, not multiplied: llama.cpp keeps its two factors the other way round
        return (left[-2], right[-2]) == (matrix[-1], matrix[-2])
    return (left[-2], right[-1]) == matrix[-2:] and left[-1] == right[-2]


def _split(text: str) -> tuple[str, float | None]:
    name, colon, scale = text.rpartition(":")
    try:
        return (name, float(scale)) if colon and name else (text, None)
    except ValueError:
        return text, None


def _checked(scale: float, where: str) -> float:
    if not abs(scale) <= MOST_SCALE:  # NaN is refused too
        # JSON has whole numbers of any size, which no format of a float takes.
        said = f"{scale:g}" if isinstance(scale, float) else shortened(str(scale), 20)
        raise ConfigError(f"a scale of {said} is not in ±{MOST_SCALE:g}", where=where)
    return scale
