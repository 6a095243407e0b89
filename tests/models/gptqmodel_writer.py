"""Folders that GPTQModel writes of a random Llama, and what it computes with them; a process of its own.

`python gptqmodel_writer.py write OUT` makes OUT/CASE, `... read FOLDER` makes FOLDER/read.safetensors: every weight
that the library computes with, in float32, and its logits of IDS. tests/models/gptq-folders holds what
GPTQModel 7.7.0 wrote (torch 2.14.1, transformers 5.23.0, CPU) and `weights.json`, SHA-256 of each of these weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IDS = torch.arange(48).view(2, 24) * 5 % 32
CASES: dict[str, dict[str, Any]] = {
    "sorted-2-bits": {"bits": 2, "group_size": 32, "sym": False, "desc_act": True},
    "asymmetric-3-bits": {"bits": 3, "group_size": 32, "sym": False},
    "asymmetric-4-bits": {"bits": 4, "group_size": 32, "sym": False},
    "second-format": {"bits": 4, "group_size": 32, "sym": False, "format": "gptq_v2"},
    "mixed": {
        "bits": 4, "group_size": -1, "act_group_aware": False,
        "dynamic": {"+:.*q_proj": {"bits": 8, "group_size": 32}, "-:.*k_proj": {}},
    },
}  # fmt: skip


def plain(folder: Path) -> None:
    """Write the Llama; rows of one sign in it have zero points of 0, which is where formats differ."""

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(
        **sizes, num_attention_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight"):
            weight.data[::3] = weight.data[::3].abs()
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{number}": number for number in range(32)}, unk_token="t3"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t0", eos_token="t1", pad_token="t2"
    ).save_pretrained(folder)


def write(out: Path) -> None:
    """Quantise the Llama in every way."""
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT

    plain(out / "plain")
    luck = torch.Generator().manual_seed(1)
    texts = torch.randint(3, 32, (16, 48), generator=luck).tolist()
    for name, said in CASES.items():
        given = said | ({"format": FORMAT(said["format"])} if "format" in said else {})
        model = GPTQModel.load(
            str(out / "plain"),
            QuantizeConfig(device="cpu", offload_to_disk=False, **given),
            dtype=torch.float16,
        )
        model.quantize(
            [{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts], batch_size=4
        )
        model.save(str(out / name))


def read(folder: Path) -> dict[str, str]:
    """Load a folder, and return the SHA-256 of every weight that the library computes with."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    model = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model
    model.float()  # scales of 16 bits are widened, so that products are exact
    found = {
        f"{name}.weight": layer.dequantize_weight().T.contiguous()
        for name, layer in model.named_modules()
        if isinstance(layer, BaseQuantLinear)
    }
    with torch.no_grad():
        save_file({**found, "logits": model(IDS).logits.contiguous()}, folder / "read.safetensors")
    return {
        name: hashlib.sha256(weight.numpy().tobytes()).hexdigest() for name, weight in sorted(found.items())
    }


if __name__ == "__main__":
    verb, place = sys.argv[1], Path(sys.argv[2])
    if verb == "write":
        write(place)
    else:
        (place / "weights.json").write_text(json.dumps(read(place), indent=1) + "\n")
