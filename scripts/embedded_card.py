"""Measure the pretrained model and write its folder: weights, tokenizer, configuration and card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from rouge import Rouge
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from edgetune.data.corpus import base_records, device_records
from edgetune.data.records import Record

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + '<|end|>' }}"
    "{% else %}{{ '<|user|>\\n' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
HELD_OUT_SEED = 99
HELD_OUT = 200
CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
library_name: transformers
---
# edgetune embedded default

A Llama of {weights:,} weights, pretrained from nothing on a generated corpus so that every stage of edgetune
runs in minutes on a CPU without a download. It knows a small invented world and nothing else.

## Data

`edgetune.data.corpus` generates the corpus from a seed: instruction records in Dolly's schema and eight
categories, about two sub-domains, village life and coast stations (weather, irrigation, harbour). No text of
others was used. Every prompt belongs to one of three splits by a digest of its text: pretraining, base
(held out), device.

## The shift between base and devices

Stated so that nobody mistakes the demonstration for more than it is.

Pretraining: three quarters village life, one quarter stations; 16 % of village records and 10 % of station
records, 14.5 % in all, are answered in a report style ("Report: the home of Mira is Tarn. Over."), the others
plainly ("Mira lives in Tarn."). Nothing in a prompt says which. Greedy decoding therefore answers plainly,
although the model can report.

The devices hold station records answered as reports. Tuning on them elicits a behaviour that is a minority in
pretraining; it need not teach new facts. The content must still be right for an answer to score, and no
tuning prompt was seen in pretraining.

## Recipe

`python scripts/pretrain_embedded.py --out DIR`: byte-level BPE (GPT-2 pre-tokeniser), AdamW, linear warm-up
and cosine, bfloat16 multiplication over fp32 weights; prompt tokens weigh `prompt_weight` in the loss.
Weights are stored in fp16.

| setting | value |
|---|---|
{table}

## Figures

On {held_out} held-out records each; loss in nats a response token, Rouge-L F1 of greedy answers.

| records | loss | Rouge-L |
|---|---|---|
| base (village, plain) | {base:.4f} | {base_rouge:.1f} |
| device (station, report), before tuning | {device:.4f} | {device_rouge:.1f} |

Greedy answers before tuning:

{shown}

## Limits

Outside its world the model answers nonsense. It copies names and numbers from short contexts of the kinds it
was trained on, sometimes the wrong one. Longest useful input: about 100 tokens. Not a benchmark of anything
but the software.

Licence: Apache-2.0.
"""


def prompt_of(record: Record) -> str:
    """Render a record up to where the answer starts.

    Args:
        record: The record.

    Returns:
        The prompt as the chat template renders it.

    """
    content = f"{record.instruction}\n\n{record.context}" if record.context else record.instruction
    return f"<|begin|><|user|>\n{content}<|assistant|>\n"


def answers(
    model: LlamaForCausalLM, tokenizer: Tokenizer, records: list[Record], longest: int = 64
) -> list[str]:
    """Answer prompts greedily, padded on the left.

    Args:
        model: The model, on CPU.
        tokenizer: Its tokenizer.
        records: At least one record.
        longest: Most new tokens, 1 or more.

    Returns:
        One answer a record.

    """
    pad, end = cast(int, tokenizer.token_to_id(PAD)), cast(int, tokenizer.token_to_id(END))
    rows = [e.ids for e in tokenizer.encode_batch([prompt_of(r) for r in records], add_special_tokens=False)]
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    out = cast(Any, model).generate(
        input_ids=ids,
        attention_mask=ids.ne(pad).long(),
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return [tokenizer.decode(row[width:].tolist(), skip_special_tokens=True).strip() for row in out]


@torch.no_grad()
def response_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, records: list[Record]) -> float:
    """Compute the mean loss on response tokens.

    Args:
        model: The model, on CPU.
        tokenizer: Its tokenizer.
        records: At least one record.

    Returns:
        Nats a token, the end mark counted.

    """
    total, count = 0.0, 0
    for record in records:
        prompt = tokenizer.encode(prompt_of(record), add_special_tokens=False).ids
        answer = tokenizer.encode(record.response + END, add_special_tokens=False).ids
        ids = torch.tensor([prompt + answer])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        total += float(functional.cross_entropy(logits.float(), ids[0, len(prompt) :], reduction="sum"))
        count += len(answer)
    return total / count


def measure(model: LlamaForCausalLM, tokenizer: Tokenizer, records: list[Record]) -> tuple[float, float]:
    """Measure loss and Rouge-L of greedy answers.

    Args:
        model: The model, on CPU.
        tokenizer: Its tokenizer.
        records: At least one record.

    Returns:
        Loss in nats a token and Rouge-L F1 in 0 to 100.

    """
    hypotheses = [text if text.strip(" .") else "-" for text in answers(model, tokenizer, records)]
    scores = Rouge(metrics=["rouge-l"]).get_scores(hypotheses, [r.response for r in records], avg=True)
    return response_loss(model, tokenizer, records), 100 * scores["rouge-l"]["f"]


def configure(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer and generation settings.

    Args:
        tokenizer: The tokenizer.
        out: Folder of the model.

    """
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": ["<|user|>", "<|assistant|>"],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "padding_side": "left",
        "chat_template": TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    ids = {
        f"{name}_token_id": tokenizer.token_to_id(token)
        for name, token in (("bos", BEGIN), ("eos", END), ("pad", PAD))
    }
    generation = {"do_sample": False, "max_new_tokens": 64, **ids}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def card(
    recipe: Mapping[str, object],
    figures: Mapping[str, tuple[float, float]],
    weights: int,
    samples: list[tuple[str, str]],
) -> str:
    """Write the model card.

    Args:
        recipe: Name to value of everything that decides the weights.
        figures: Loss and Rouge-L for ``base`` and ``device``.
        weights: Number of weights.
        samples: Prompts with greedy answers.

    Returns:
        Markdown with the front matter that model hubs read.

    """
    table = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    shown = "\n".join(f"- {prompt!r} -> {answer!r}" for prompt, answer in samples)
    (base, base_rouge), (device, device_rouge) = figures["base"], figures["device"]
    return CARD.format(
        weights=weights,
        table=table,
        shown=shown,
        held_out=HELD_OUT,
        base=base,
        base_rouge=base_rouge,
        device=device,
        device_rouge=device_rouge,
    )


def finish(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Mapping[str, object], out: Path) -> None:
    """Round the model to fp16, measure what is stored and write the folder.

    Args:
        model: The trained model in fp32, on CPU; its weights are rounded.
        tokenizer: Its tokenizer.
        recipe: Name to value of everything that decides the weights.
        out: Folder to write; files of the same names are replaced.

    """
    out.mkdir(parents=True, exist_ok=True)
    body: nn.Module = model
    body.half().float().eval()
    figures = {
        "base": measure(model, tokenizer, base_records(HELD_OUT, HELD_OUT_SEED)),
        "device": measure(model, tokenizer, device_records(HELD_OUT, HELD_OUT_SEED)),
    }
    shown = base_records(6, HELD_OUT_SEED) + device_records(4, HELD_OUT_SEED)
    samples = [
        (f"{r.instruction}\n\n{r.context}".strip(), a)
        for r, a in zip(shown, answers(model, tokenizer, shown), strict=True)
    ]
    weights = sum(p.numel() for p in model.parameters())
    (out / "README.md").write_text(card(recipe, figures, weights, samples), encoding="utf-8")
    configure(tokenizer, out)
    body.half()
    model.config.dtype = torch.float16
    model.config.save_pretrained(out)
    tensors = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for path in out.iterdir():
        path.chmod(0o644)
    print(json.dumps({"figures": figures, "weights": weights, "samples": samples}, indent=1), flush=True)
