"""Tiny tokenizers, models and rounding for the export tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from edgetune.core.export_events import Verified
from edgetune.core.fitting import fitting
from edgetune.core.quantised import Q4_0, BlockGrid, Field, QuantisedMatrix
from edgetune.export.parity import Text
from edgetune.export.plan import ExportPlan, plan_export
from edgetune.export.speech import speech_of
from edgetune.export.tensors import FloatType
from edgetune.export.verify import verify


def script(name: str) -> Any:
    """A module of the scripts: what it makes a table of is tested here."""
    path = Path(__file__).parents[2] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? They've seen 1234 foxes.",
    "Wie viele Äpfel kosten 3,50 € – oder sind's 20? Größe, Übung, naïve café.",
    "def f(x):\n    return x ** 2\n\n\n\tprint( f(10) )   # squares  ",
    "日本語のテキスト、中文字符，한국어 🙂👍🏽 مرحبا שלום",
    " leading and trailing \r\n\r\n spaces\t\tand tabs ",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "a",
    "\n",
    "<|user|>hello<|end|> world",
    "e\u0301 \u00a0 \u200b\u2028x",
    "1 22 333 4444 55555",
]


def byte_level(
    pre_tokenizer: object | None = None, *, ignore_merges: bool = False
) -> PreTrainedTokenizerFast:
    """A tiny byte-level BPE with a chat template, trained on a few lines."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", chat_template=TEMPLATE
    )


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    """A random Llama with grouped heads wider than hidden / heads, and a head scaled so that it has opinions."""
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.15,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def round_to(weight: torch.Tensor, grid: BlockGrid) -> QuantisedMatrix:
    """Round to nearest; the extremum gets the lowest level, so scales that may be negative have both signs."""
    values = weight.float()
    unit = 2.0 ** float(torch.log2(values.abs().max() / 1024).ceil()) if grid.has_unit else 1.0
    groups = (values / unit).reshape(weight.shape[0], -1, grid.group)
    points = grid.points()
    low, high = groups.amin(-1), groups.amax(-1)
    if grid.offset:
        low = low.clamp(max=0) if grid.sign < 0 else low
        scale, offset = (high - low).clamp(min=1e-6) / points[-1], (low * grid.sign,)
    else:
        extremum = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scale, offset = (extremum if grid.signed else -extremum.abs()) / points[0], ()
        scale = torch.where(scale == 0, torch.full_like(scale, 1e-3), scale)
    numbers = [
        one
        for wanted, fields in zip((scale, *offset), (grid.scale, grid.offset), strict=False)
        for one in _shared(wanted, fields)
    ]
    own, shift = grid.steps(numbers)
    safe = torch.where(own == 0, torch.ones_like(own), own)
    target = (groups - (0 if shift is None else shift.unsqueeze(-1))) / safe.unsqueeze(-1)
    codes = (target.unsqueeze(-1) - points).abs().argmin(-1) + grid.low
    return QuantisedMatrix(grid, codes.to(torch.int8).reshape(weight.shape), tuple(numbers), unit)


def _shared(wanted: torch.Tensor, fields: tuple[Field, ...]) -> list[torch.Tensor]:
    """The stored factors of a scale a group: for two levels, one of the block that the widest group fills."""
    if len(fields) == 1:
        return [fields[0].number.nearest(wanted)]
    wide, narrow = fields
    blocks = wanted.reshape(len(wanted), -1, wide.span // narrow.span)
    extremum = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    most = narrow.number.high  # type: ignore[attr-defined]
    head = wide.number.nearest(extremum / most)
    value = wide.number.value(head)
    share = narrow.number.nearest(blocks / torch.where(value == 0, torch.ones_like(value), value))
    return [head.squeeze(-1), share.reshape(wanted.shape)]


def quantise(model: PreTrainedModel, grid: BlockGrid = Q4_0) -> dict[str, QuantisedMatrix]:
    """Round every matrix that has whole blocks, to a grid that fits, and give the model the dequantised weights."""
    found = {}
    embedding = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and (own := fitting(grid, parameter.shape[1])) is not None:
            found[name] = round_to(parameter.data, Q4_0 if own.has_unit and parameter is embedding else own)
            parameter.data.copy_(found[name].dequantise())
    return found


def plain_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Text]:
    """Texts with the ids the tokenizer makes of them by itself."""
    return [Text(text, tuple(tokenizer(text, add_special_tokens=False).input_ids)) for text in texts]


def plan_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    quantised: Mapping[str, QuantisedMatrix] | None = None,
    float_type: FloatType = "F16",
    pre_tokenizer: str | None = None,
) -> ExportPlan:
    """The plan of a file of a model that its own template speaks to."""
    named = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = [named] if isinstance(named, int) else list(named or [])
    grids = {name: matrix.grid for name, matrix in (quantised or {}).items()}
    return plan_export(
        model,
        tokenizer,
        speech_of(tokenizer, ends),
        grids=grids,
        float_type=float_type,
        pre_tokenizer=pre_tokenizer,
    )


def check(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[tuple[Sequence[int], int]],
    texts: Sequence[str],
    quantised: Mapping[str, QuantisedMatrix] | None = None,
    float_type: FloatType = "F16",
) -> Verified:
    """Verify a file against its model."""
    plan = plan_of(model, tokenizer, quantised, float_type)
    return verify(path, model, tokenizer, plan, examples, plain_texts(tokenizer, texts))
