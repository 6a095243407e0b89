"""How a GGUF file names and orders what a Llama is made of, for those who write such a file and those who read one."""

from __future__ import annotations

import torch

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Parameter name (inside a layer: without prefix and number) without `.weight` or `.bias` to GGUF name."""
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def interleaved_rows(rows: int, heads: int) -> torch.Tensor:
    """Return which row stands where once half-split rotary pairs are interleaved.

        out[h, 2i + s] = in[h, i + s head_dim / 2],   s in {0, 1}

    Args:
        rows: heads * head_dim.
        heads: attention heads of this matrix (key-value heads for k).

    Returns:
        int64 [rows] indices: `new = old[indices]`, valid for packed rows too, since blocks run along the inputs.
    Source: llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`.
    """
    return torch.arange(rows).reshape(heads, 2, rows // heads // 2).transpose(1, 2).reshape(rows)
