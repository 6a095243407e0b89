"""A real model from a GGUF file: SmolLM2's own words, computed as llama.cpp computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from edgetune.export.llama_cpp import LlamaCpp
from edgetune.models.backbone import Backbone, load_backbone

pytestmark = pytest.mark.model
TEXTS = (
    "The capital of France is Paris, and the capital of Germany is Berlin.",
    "In 2023 they sold 1,234 units at $5.99 each.",
    "def add(a, b):\n    return a + b\n",
)


@pytest.fixture(scope="module")
def backbone(smollm2: Path) -> Backbone:
    return load_backbone(smollm2)


def published(path: Path) -> Any:
    """The tokenizer from the parts that SmolLM2 was published with: digits one by one, then GPT-2's words."""
    fields = GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens[:17]])
    return tokenizer


def test_a_thousand_records_get_the_published_ids(
    backbone: Backbone, smollm2: Path, shared_data: Path
) -> None:
    lines = (shared_data / "dolly" / "databricks-dolly-15k.jsonl").read_text().splitlines()[::15][:1000]
    records = [json.loads(line) for line in lines]
    texts = [
        f"<|im_start|>user\n{one['instruction']}\n\n{one['context']}<|im_end|>\n{one['response']}"
        for one in records
    ]
    ids = [backbone.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert ids == [one.ids for one in published(smollm2).encode_batch(texts)]
    with LlamaCpp(smollm2, context=512) as llama:
        assert llama.tokenise_all(texts, special=False) == ids


def test_llama_cpp_gives_every_token_the_probability_it_has_here(backbone: Backbone, smollm2: Path) -> None:
    with LlamaCpp(smollm2, context=128) as llama:
        for text in TEXTS:
            ids = backbone.tokenizer(text).input_ids
            with torch.no_grad():
                scores = backbone.model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
            here = scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            there = torch.tensor(llama.log_probabilities(ids, 1), dtype=torch.float64)
            # llama.cpp rounds activations to 8 bits before it multiplies them with blocks of 4 bits.
            assert (here - there).abs().mean() < 0.1
            assert (here - there).abs().max() < 0.7


def test_it_answers(backbone: Backbone) -> None:
    asked = backbone.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    generate: Any = backbone.model.generate
    made = generate(**asked, max_new_tokens=16, do_sample=False)
    answer = backbone.tokenizer.decode(made[0, asked["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
