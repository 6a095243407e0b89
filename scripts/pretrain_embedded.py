"""Train the embedded default from nothing: tokenizer, model, folder.

One command, resumable, deterministic per seed, CPU and thread count.

Usage: ``python scripts/pretrain_embedded.py --out src/edgetune/models/embedded``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from edgetune.data.corpus import pretraining_records
from edgetune.data.records import Record
from embedded_card import finish

SPECIALS = ("<|begin|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")
BEGIN, _, _, END, PAD = range(5)
CHUNK = 50
"""Batches drawn and sorted by length together."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights.

    Args:
        seed: Seed of initial weights and data.
        steps: Optimiser steps, 1 or more.
        batch: Records a step, 1 or more.
        lr: Peak learning rate of AdamW, above 0.
        decay: Weight decay on matrices, 0 or more.
        warmup: Steps of linear warm-up.
        prompt_weight: Weight of prompt tokens in the loss, 0 to 1; response tokens weigh 1.
        vocab: Size of the vocabulary, with specials.
        hidden: Width of the model, a multiple of 32.
        inner: Width of the feed-forward part, a multiple of 32.
        layers: Number of layers.

    """

    seed: int = 2408
    steps: int = 3200
    batch: int = 32
    lr: float = 3e-3
    decay: float = 0.1
    warmup: int = 200
    prompt_weight: float = 0.1
    vocab: int = 1280
    hidden: int = 128
    inner: int = 512
    layers: int = 4


def rendered(record: Record) -> tuple[str, str]:
    """Render a record as the chat template does.

    Args:
        record: The record.

    Returns:
        The prompt up to the answer, and the answer with its end mark.

    """
    content = f"{record.instruction}\n\n{record.context}" if record.context else record.instruction
    return f"<|begin|><|user|>\n{content}<|assistant|>\n", f"{record.response}<|end|>"


def train_tokenizer(recipe: Recipe) -> Tokenizer:
    """Train the byte-level BPE tokenizer on the pretraining split.

    Args:
        recipe: Gives seed and size of the vocabulary.

    Returns:
        The tokenizer; it adds no special token by itself.

    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    records = pretraining_records(30_000, recipe.seed)
    texts = (text for r in records for text in (f"\n{r.instruction}", f"\n\n{r.context}", f"\n{r.response}"))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new_model(recipe: Recipe) -> LlamaForCausalLM:
    """Make the untrained model.

    Args:
        recipe: Gives seed and sizes.

    Returns:
        The model in fp32.

    """
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 32,
        head_dim=32,
        num_key_value_heads=recipe.hidden // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # twice as fast as fused attention for rows this short, on CPU
    return model


Batch = tuple[torch.Tensor, torch.Tensor]


def collate(records: list[Record], tokenizer: Tokenizer, prompt_weight: float) -> Batch:
    """Pad records on the right and weigh their tokens.

    Args:
        records: At least one record.
        tokenizer: The tokenizer.
        prompt_weight: Weight of prompt tokens, 0 to 1.

    Returns:
        Token ids and weights, both of shape (records, longest).

    """
    pairs = [rendered(record) for record in records]
    prompts = [e.ids for e in tokenizer.encode_batch([p for p, _ in pairs], add_special_tokens=False)]
    answers = [e.ids for e in tokenizer.encode_batch([a for _, a in pairs], add_special_tokens=False)]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(pairs), longest), PAD)
    weights = torch.zeros(len(pairs), longest)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        weights[row, 1 : len(prompt)] = prompt_weight
        weights[row, len(prompt) : end] = 1.0
    return ids, weights


def batches(recipe: Recipe, tokenizer: Tokenizer, start: int) -> Iterator[Batch]:
    """Draw training batches, the same for a step whether resumed or not.

    Args:
        recipe: Gives seed and batch size.
        tokenizer: The tokenizer.
        start: First step wanted, 0 or more.

    Yields:
        One batch a step; records of like length share a batch.

    """
    chunk, skip = divmod(start, CHUNK)
    while True:
        records = pretraining_records(CHUNK * recipe.batch, recipe.seed * 1_000_003 + chunk)
        records.sort(key=lambda r: len(r.instruction) + len(r.context) + len(r.response))
        order = list(range(CHUNK))
        random.Random(f"order/{recipe.seed}/{chunk}").shuffle(order)
        for index in order[skip:]:
            rows = records[index * recipe.batch : (index + 1) * recipe.batch]
            yield collate(rows, tokenizer, recipe.prompt_weight)
        chunk, skip = chunk + 1, 0


def weighted_loss(model: LlamaForCausalLM, batch: Batch, device: str, half: bool) -> torch.Tensor:
    """Compute the mean cross-entropy over weighted tokens.

    Args:
        model: The model.
        batch: Ids and weights.
        device: Where to compute.
        half: Whether to multiply in bfloat16.

    Returns:
        A scalar in nats a token.

    """
    ids, weights = (tensor.to(device) for tensor in batch)
    with torch.autocast(device, torch.bfloat16, enabled=half):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    chosen = weights[:, 1:].flatten()
    return (losses * chosen).sum() / chosen.sum()


def rate(recipe: Recipe, step: int) -> float:
    """Give the learning rate of a step: linear warm-up, then cosine to a hundredth.

    Args:
        recipe: Gives peak, warm-up and length.
        step: From 0 to ``recipe.steps - 1``.

    Returns:
        The learning rate.

    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def new_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Make AdamW that decays matrices only.

    Args:
        model: The model.
        recipe: Gives rate and decay.

    Returns:
        The optimiser.

    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))


def identity(recipe: Recipe, tokenizer: Tokenizer) -> str:
    """Name what a checkpoint belongs to: the recipe and, through the tokenizer, the corpus.

    Args:
        recipe: The recipe.
        tokenizer: The tokenizer trained on the corpus.

    Returns:
        A JSON text.

    """
    digest = hashlib.blake2s(tokenizer.to_str().encode()).hexdigest()
    return json.dumps({**asdict(recipe), "tokenizer": digest}, sort_keys=True)


def save_checkpoint(
    work: Path, step: int, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, owner: str
) -> None:
    """Write weights and optimiser state at once or not at all.

    Args:
        work: Folder of checkpoints.
        step: Steps done.
        model: The model.
        optimizer: The optimiser.
        owner: Identity stored beside, so that another recipe is not resumed by mistake.

    """
    tensors = {f"model/{name}": p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{index}/{name}": value.cpu().contiguous() for name, value in state.items()}
    part = work / "checkpoint.part"
    save_file(tensors, part, metadata={"step": str(step), "owner": owner})
    part.replace(work / "checkpoint.safetensors")


def load_checkpoint(work: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, owner: str) -> int:
    """Restore weights and optimiser state when there is a checkpoint.

    Args:
        work: Folder of checkpoints.
        model: The model to fill.
        optimizer: The optimiser to fill.
        owner: Identity that must equal the stored one.

    Returns:
        Steps done, 0 without a checkpoint.

    Raises:
        ValueError: The checkpoint belongs to another recipe.

    """
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    if header["owner"] != owner:
        raise ValueError(f"{path} was made with another recipe or corpus; remove it or choose another --work")
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"model/{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(header["step"])


def train(recipe: Recipe, tokenizer: Tokenizer, work: Path, device: str, every: int) -> LlamaForCausalLM:
    """Train, or go on training, to the end of the recipe.

    Args:
        recipe: The recipe.
        tokenizer: The tokenizer.
        work: Folder of checkpoints.
        device: ``cpu`` or ``cuda``.
        every: Steps between checkpoints, 1 or more.

    Returns:
        The trained model in fp32.

    """
    model = new_model(recipe)
    body: nn.Module = model
    body.to(device)
    optimizer = new_optimizer(model, recipe)
    owner = identity(recipe, tokenizer)
    start, began = load_checkpoint(work, model, optimizer, owner), time.monotonic()
    mean = 0.0
    for step, batch in zip(range(start, recipe.steps), batches(recipe, tokenizer, start), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        loss = weighted_loss(model, batch, device, half=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = 0.98 * mean + 0.02 * loss.item() if mean else loss.item()
        if (step + 1) % 100 == 0:
            pace = (time.monotonic() - began) / (step + 1 - start)
            print(
                f"step {step + 1}/{recipe.steps} loss {mean:.4f} {1000 * pace:.0f} ms/step "
                f"left {pace * (recipe.steps - step - 1) / 60:.1f} min",
                flush=True,
            )
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            save_checkpoint(work, step + 1, model, optimizer, owner)
    body.to("cpu")
    return model


def main() -> None:
    """Parse the command line, train and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, help="folder of checkpoints (default: OUT with .work appended)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; part of what fixes the bits")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(args.device == "cpu")
    recipe = Recipe(seed=args.seed, steps=args.steps)
    work: Path = args.work or args.out.with_name(args.out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(recipe)
    model = train(recipe, tokenizer, work, args.device, args.every)
    finish(model, tokenizer, asdict(recipe), args.out)


if __name__ == "__main__":
    main()
