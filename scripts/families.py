"""Try model families from end to end and write the table of what works (`make families`).

A random model of two to five layers is made of every configuration, offline, and given to the commands: one step of
forward-only tuning, one of LoRA, and the main job, which compresses to 4 bits, writes a GGUF file and checks it in
llama.cpp. What is refused is named by the line that refuses it, with the seconds after which it does.

    python scripts/families.py --out docs/results/families.md [NAME ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edgetune.cli.app import execute
from edgetune.core.event_log import read_events
from edgetune.core.gguf_read import read_metadata
from edgetune.models.quiet import quiet

ROWS = 384
ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LIKE_LLAMA: dict[str, Any] = ENDS | {
    "vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
}  # fmt: skip
WIDE = LIKE_LLAMA | {"head_dim": 32}
GEMMA = WIDE | {"query_pre_attn_scalar": 32, "sliding_window": 16}
LIKE_GPT2: dict[str, Any] = {
    "vocab_size": ROWS, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.15,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
FALCON: dict[str, Any] = {
    "vocab_size": ROWS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False,
    "bias": False, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.15, "max_position_embeddings": 256,
}  # fmt: skip
MIXTURE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 256,
    "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)],
}  # fmt: skip

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", LIKE_LLAMA),
    "Llama, tied, wide heads": ("Llama", WIDE | {"tie_word_embeddings": True}),
    "Llama, biases": ("Llama", LIKE_LLAMA | {"attention_bias": True}),
    "Llama, linear positions": (
        "Llama",
        LIKE_LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "Llama 3": ("Llama", LIKE_LLAMA | {"rope_parameters": LLAMA3}),
    "Llama, yarn": ("Llama", LIKE_LLAMA | {"rope_parameters": YARN}),
    "Mistral": ("Mistral", LIKE_LLAMA | {"sliding_window": None}),
    "Mistral, window": ("Mistral", LIKE_LLAMA | {"sliding_window": 200}),
    "Qwen2": ("Qwen2", LIKE_LLAMA),
    "Qwen2, yarn": ("Qwen2", LIKE_LLAMA | {"rope_parameters": YARN}),
    "Qwen3": ("Qwen3", WIDE),
    "Gemma": ("Gemma", WIDE),
    "Gemma 2": ("Gemma2", GEMMA),
    "Gemma 3": ("Gemma3Text", GEMMA | {"num_hidden_layers": 6}),
    "GPT-2": ("GPT2", LIKE_GPT2),
    "Phi-1, Phi-2": ("Phi", LIKE_LLAMA),
    "Phi-3": ("Phi3", LIKE_LLAMA),
    "Phi-3, long context": (
        "Phi3",
        LIKE_LLAMA
        | {"rope_parameters": LONG, "max_position_embeddings": 1024, "original_max_position_embeddings": 256},
    ),
    "Granite": (
        "Granite",
        LIKE_LLAMA
        | {
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "logits_scaling": 3.0,
        },
    ),
    "OLMo": ("Olmo", LIKE_LLAMA | {"clip_qkv": 0.5}),
    "OLMo 2": ("Olmo2", LIKE_LLAMA),
    "OLMo 2, tied": ("Olmo2", LIKE_LLAMA | {"tie_word_embeddings": True}),
    "OLMo 3": ("Olmo3", LIKE_LLAMA | {"num_hidden_layers": 5, "sliding_window": 16}),
    "SmolLM3": ("SmolLM3", LIKE_LLAMA | {"num_hidden_layers": 5}),
    "Seed-OSS": ("SeedOss", LIKE_LLAMA | {"head_dim": 16}),
    "ERNIE 4.5": ("Ernie4_5", LIKE_LLAMA | {"head_dim": 16}),
    "Arcee": ("Arcee", LIKE_LLAMA),
    "GLM-4": ("Glm4", LIKE_LLAMA | {"head_dim": 16}),
    "Hunyuan, dense": ("HunYuanDenseV1", LIKE_LLAMA | {"head_dim": 16}),
    "Cohere": ("Cohere", LIKE_LLAMA | {"logit_scale": 0.5}),
    "Cohere 2": ("Cohere2", LIKE_LLAMA | {"num_hidden_layers": 4, "sliding_window": 16, "logit_scale": 0.5}),
    "GPT-NeoX (Pythia)": ("GPTNeoX", LIKE_LLAMA),
    "GPT-NeoX, in sequence": ("GPTNeoX", LIKE_LLAMA | {"use_parallel_residual": False}),
    "StableLM": ("StableLm", LIKE_LLAMA),
    "StableLM, parallel": ("StableLm", LIKE_LLAMA | {"use_parallel_residual": True, "use_qkv_bias": True}),
    "Nemotron": ("Nemotron", LIKE_LLAMA),
    "StarCoder2": ("Starcoder2", LIKE_LLAMA),
    "StarCoder": ("GPTBigCode", LIKE_GPT2 | {"n_inner": 96}),
    "Falcon 7B": ("Falcon", FALCON | {"parallel_attn": True, "multi_query": True}),
    "Falcon 40B": ("Falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "MPT": (
        "Mpt",
        ENDS
        | {
            "vocab_size": ROWS,
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 256,
            "initializer_range": 0.15,
        },
    ),
    "BLOOM": (
        "Bloom",
        ENDS | {"vocab_size": ROWS, "hidden_size": 64, "n_head": 4, "n_layer": 2, "initializer_range": 0.15},
    ),
    "OPT": (
        "OPT",
        ENDS
        | {
            "vocab_size": ROWS,
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
    ),
    "GPT-J": ("GPTJ", LIKE_GPT2 | {"rotary_dim": 8}),
    "GPT-Neo": (
        "GPTNeo",
        ENDS
        | {
            "vocab_size": ROWS,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global"], 2]],
            "max_position_embeddings": 256,
        },
    ),
    "CodeGen": ("CodeGen", LIKE_GPT2 | {"rotary_dim": 8}),
    "Helium": ("Helium", LIKE_LLAMA | {"head_dim": 16}),
    "EXAONE 4": ("Exaone4", LIKE_LLAMA | {"num_hidden_layers": 4}),
    "Mixtral": ("Mixtral", LIKE_LLAMA | MIXTURE),
    "Qwen3, mixture": ("Qwen3Moe", LIKE_LLAMA | MIXTURE),
    "Mamba": (
        "Mamba",
        ENDS | {"vocab_size": ROWS, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    ),
    "Llama, dynamic positions": (
        "Llama",
        LIKE_LLAMA | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
}
"""Name of a row to the prefix of its classes in transformers and the settings of its configuration."""

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
SETTINGS = (
    "data.records=24", "data.held_out=4", "data.calibration=6", "data.max_tokens=96", "split.kind=iid",
    "method.local_steps=1", "method.batch_size=2", "evaluation.max_new_tokens=4", "evaluation.samples=0",
)  # fmt: skip


def make_model(name: str) -> PreTrainedModel:
    """Return a random model of a row, the same every time, with norms and biases off their initial ones and zeros."""
    prefix, settings = SHAPES[name]
    config = getattr(transformers, f"{prefix}Config")(**settings)
    classes = [
        getattr(transformers, prefix.removesuffix("Text") + end, None)
        for end in ("ForCausalLM", "LMHeadModel")
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = next(one for one in classes if one is not None)(config)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = 1
    model.eval()  # type: ignore[no-untyped-call]
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 384 tokens with a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    text = "hello world, this is a small text of some words. yes sir, 123 it is; no, never again, they said."
    backend.train_from_iterator([text] * 3, trainer)
    fast: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = fast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", chat_template=TEMPLATE
    )
    return made


@dataclass(frozen=True)
class Outcome:
    """What a command came to: its exit code, its error line, and how long it took."""

    code: int
    line: str
    seconds: float

    @property
    def word(self) -> str:
        """Return `yes`, or the reason."""
        return "yes" if self.code == 0 else f"exit {self.code}: {self.line}"


def command(*words: str) -> Outcome:
    """Run one command in this process."""
    errors = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = execute(words)
    line = " ".join(errors.getvalue().split()).removeprefix("error: ")
    return Outcome(code, line, time.perf_counter() - start)


def table_row(name: str, folder: Path) -> list[str]:
    """Try one family and return its row."""
    model, data = folder / "model", folder / "records.jsonl"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with quiet():
        made = make_model(name)
        made.save_pretrained(model)
        make_tokenizer().save_pretrained(model)
    rows = [
        {"instruction": f"say {i}", "context": "", "response": f"yes sir, {i * i} it is", "category": "a"}
        for i in range(60)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["--model", str(model), "--data", str(data), "-q"]
    given += [word for setting in SETTINGS for word in ("--set", setting)]
    forward = command("tune", "mezo", *given, "--rounds", "1", "--out", str(folder / "mezo"))
    lora = command("tune", "lora", *given, "--rounds", "1", "--out", str(folder / "lora"))
    federation = ["--devices", "2", "--participation", "1", "--rounds", "1", "--set", "method.pool=16"]
    file = command("run", *given, *federation, "--out", str(folder / "run"))
    return [name, made.config.model_type, forward.word, lora.word, *_about_file(file, folder / "run")]


def _about_file(file: Outcome, out: Path) -> list[str]:
    log = out / "events.jsonl"
    if file.code:
        when = "after tuning" if log.exists() else f"before the first step, after {file.seconds:.1f} s"
        line = file.line.partition(": ")[2].partition(" (supported: ")[0]
        return ["no", "", f"{line} ({when})"]
    (checked,) = [event for event in read_events(log) if event["event"] == "verified"]
    exact, usual = checked["mean_log_probability_difference"], checked["usual_mean_difference"]
    architecture = str(read_metadata(out / "model.gguf")["general.architecture"])
    planned = [event for event in read_events(log) if event["event"] == "planned"][-1]
    return [architecture, f"{exact:.4f}, {usual:.4f}", "; ".join(planned["notes"])]


ABOUT = """# Model families, tried from end to end

Written by `make families`; do not edit. Random models of two to six layers, made offline from the configurations of
transformers {version}: one step of MeZO, one of LoRA, and `edgetune run` (one round of FedKSeed, OPTQ to 4 bits, a
GGUF file checked in llama.cpp). `differs by` is the mean difference of the log-probabilities of llama.cpp and PyTorch
with the same weights, in nats, with attention in fp32 and as llama.cpp runs; most of it is llama.cpp's rounding of
activations to 8 bits. The tests compare every row in fp32, too.

{written} of {rows} rows end in a checked file.
"""
HEAD = (
    "family",
    "model_type",
    "`tune mezo`",
    "`tune lora`",
    "GGUF file",
    "differs by",
    "remarks, or what refuses it",
)


def page(rows: Sequence[Sequence[str]]) -> str:
    """Return the Markdown page."""
    written = sum(row[4] != "no" for row in rows)
    lines = [
        ABOUT.format(version=transformers.__version__, written=written, rows=len(rows)),
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    return "\n".join(
        [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]
    )


def main() -> None:
    """Try the families that are named, or all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="Rows to try; all without any.")
    parser.add_argument("--out", type=Path, help="Markdown file; printed without it.")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or SHAPES:
            rows.append(table_row(name, Path(folder) / "family"))
            print(" | ".join(rows[-1]), flush=True)
    if options.out is not None:
        options.out.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
