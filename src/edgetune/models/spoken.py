"""A model that saves its tokenizer with it: the folder then opens in transformers without the base."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

UPLOAD = ("push_to_hub", "repo_id", "token", "private", "create_pr", "revision", "commit_message")
"""Arguments of `save_pretrained` that say where else files go."""
M = TypeVar("M", bound=nn.Module)


def with_tokenizer(model: M, tokenizer: PreTrainedTokenizerBase) -> M:
    """Give a model its tokenizer, as `model.tokenizer`, and let its `save_pretrained` write both.

    Args:
        model: of transformers or peft; the same object is returned.
        tokenizer: whose files, the chat template among them, stand beside the weights then.
    """
    spoken: Any = model
    spoken.tokenizer = tokenizer
    # Bound, so that a copy of the model saves itself and not this one.
    spoken.save_pretrained = MethodType(save_pretrained, model)
    return model


def save_pretrained(model: Any, save_directory: Any, *arguments: Any, **named: Any) -> Any:
    """Do what the model's own `save_pretrained` does, and write its tokenizer into the same folder."""
    done = type(model).save_pretrained(model, save_directory, *arguments, **named)
    if named.get("is_main_process", True):
        where = {name: named[name] for name in UPLOAD if name in named}
        model.tokenizer.save_pretrained(save_directory, **where)
    return done
