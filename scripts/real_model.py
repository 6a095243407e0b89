"""SmolLM2 beside llama.cpp: ids, log-probabilities, greedy tokens and memory, as a page (`make real-model`).

    python scripts/real_model.py --data dolly.jsonl [--run out/demo-real] --out docs/results/real-model.md

Needs `edgetune fetch smollm2`. The tokenizer is compared with llama.cpp's and with one put together here from the parts
that SmolLM2 was published with; log-probabilities with llama.cpp on the very file, which rounds activations to 8 bits,
and on the same weights in float32, where nothing is rounded.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from gguf import GGUFReader
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from edgetune.core.keys import stream
from edgetune.data.reading import load_records
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.shelf import SHELF
from edgetune.report.summary import read_summary
from edgetune.report.table import print_result

NAME = "smollm2"
RECORDS, TEXTS, TOKENS, ANSWER = 1000, 64, 32, 8
"""Records whose ids are compared; texts that are scored, their length, and the greedy tokens after each."""


@dataclass(frozen=True)
class Agreement:
    """How one file agrees with torch: gaps of log-probabilities in nats, positions, and equal greedy continuations."""

    name: str
    mean: float
    largest: float
    positions: int
    same_choice: int
    equal_answers: int


def published(path: Path) -> Tokenizer:
    """Put SmolLM2's tokenizer together from the vocabulary and the parts that it was published with."""
    fields = GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges"))
    types = fields["tokenizer.ggml.token_type"].contents()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def conversations(backbone: Backbone, data: Path, count: int) -> list[str]:
    """Return records as chats, drawn at random."""
    records = load_records(str(data))
    order = stream(0, "real-model").permutation(len(records))[:count]
    chosen = [records[int(index)] for index in order]
    return [
        str(
            backbone.tokenizer.apply_chat_template(
                [
                    {"role": "user", "content": f"{one.instruction}\n\n{one.context}".strip()},
                    {"role": "assistant", "content": one.response},
                ],
                tokenize=False,
            )
        )
        for one in chosen
    ]


def equal_ids(backbone: Backbone, texts: Sequence[str], path: Path) -> tuple[int, int, int]:
    """Return how many texts get the same ids here and in `tokenizers`, here and in llama.cpp, and the tokens in all."""
    ours = [backbone.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    theirs = [one.ids for one in published(path).encode_batch(list(texts), add_special_tokens=False)]
    with LlamaCpp(path, context=512) as llama:
        there = llama.tokenise_all(texts, special=False)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return same, sum(a == b for a, b in zip(ours, there, strict=True)), sum(map(len, ours))


Computed = tuple[list[int], torch.Tensor, list[int]]
"""A text's ids, torch's log-probabilities of all but the first, and its greedy continuation."""


@torch.no_grad()
def computed(backbone: Backbone, ids: list[int]) -> Computed:
    """Return what torch makes of a text."""
    given = torch.tensor([ids])
    scores = backbone.model(input_ids=given).logits[0, :-1].double().log_softmax(-1)
    made = backbone.model.generate(  # type: ignore[operator]
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=ANSWER, do_sample=False
    )
    return ids, scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0], made[0, len(ids) :].tolist()


def agreement(name: str, path: Path, exact: bool, backbone: Backbone, texts: Sequence[Computed]) -> Agreement:
    """Compare a file in llama.cpp with the model in torch, token by token and by what each would go on with."""
    gaps, same, equal = [], 0, 0
    with LlamaCpp(path, threads=1, context=TOKENS + ANSWER + 1, exact=exact) as llama:
        for ids, scores, answer in texts:
            there = torch.tensor(llama.log_probabilities(ids, 1), dtype=torch.float64)
            gaps.append((there - scores).abs())
            said = llama.generate(ids, ANSWER)
            same += said.startswith(str(backbone.tokenizer.decode(answer[:1], skip_special_tokens=True)))
            equal += said == backbone.tokenizer.decode(answer, skip_special_tokens=True)
    found = torch.cat(gaps)
    return Agreement(name, float(found.mean()), float(found.max()), len(found), same, equal)


def page(backbone: Backbone, data: Path, run: Path | None, memory: tuple[int, int], seconds: float) -> str:
    """Return the page."""
    path = SHELF[NAME].path
    texts = conversations(backbone, data, RECORDS)
    same, there, tokens = equal_ids(backbone, texts, path)
    cut = [backbone.tokenizer(text, add_special_tokens=False).input_ids[-TOKENS - 2 : -2] for text in texts]
    scored = [computed(backbone, ids) for ids in cut[:TEXTS]]
    rows = [agreement("the file itself (Q4_1; activations in 8 bits)", path, False, backbone, scored)]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float32.gguf"
        write_gguf(plain, backbone.model, backbone.tokenizer, quantised={}, float_type="F32")
        rows.append(agreement("the same weights in float32", plain, True, backbone, scored))
    weights = sum(weight.numel() for weight in backbone.model.parameters())
    resident = [f"{size / 1e6:,.0f} MB" for size in memory]
    lines = [
        "# A real model: SmolLM2-135M-Instruct",
        "",
        "Written by `make real-model`; do not edit. The base is the Q4_1 file of `edgetune fetch smollm2`, in float32.",
        "",
        f"**Memory.** {weights:,} weights take {path.stat().st_size:,} bytes in the file and {4 * weights:,} in",
        f"float32. Opening the file raises the resident memory from {resident[0]} (libraries) to {resident[1]},",
        f"mapped pages included, in {seconds:.1f} s.",
        "",
        f"**Ids.** {RECORDS:,} Dolly records as chats, {tokens:,} tokens: {same:,} get the same ids from the",
        "`tokenizers` library with the parts SmolLM2 was published with (digits one by one, GPT-2's words),",
        f"{there:,} from llama.cpp.",
        "",
        f"**llama.cpp and torch**, the last {TOKENS} tokens of {TEXTS} of these chats, each given those before it, and",
        f"{ANSWER} greedy tokens behind them.",
        "",
        "| file in llama.cpp | mean gap, nats | largest | tokens | same next token | same greedy answers |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.name} | {one.mean:.2g} | {one.largest:.2g} | {one.positions:,} | {one.same_choice} of {TEXTS} "
        f"| {one.equal_answers} of {TEXTS} |"
        for one in rows
    ]
    return "\n".join(lines + (_demo(run) if run is not None else [])) + "\n"


def _demo(run: Path) -> list[str]:
    """Return the table of a finished `make demo-real`."""
    summary, out = read_summary(run), io.StringIO()
    print_result(Console(file=out, width=100, color_system=None), summary)
    times = [json.loads(line)["time"] for line in (run / "events.jsonl").read_text().splitlines()]
    minutes = (times[-1] - times[0]) / 60
    table = [line.rstrip() for line in out.getvalue().strip("\n").splitlines()]
    return ["", f"## `make demo-real`, {minutes:.1f} minutes", "", "```", *table, "```"]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    process, start = psutil.Process(), time.perf_counter()
    before = process.memory_info().rss
    backbone = load_backbone(NAME)
    memory, seconds = (before, process.memory_info().rss), time.perf_counter() - start
    asked.out.write_text(page(backbone, asked.data, asked.run, memory, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
