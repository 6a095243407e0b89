"""A model that is tuned in a loop of the user's own, batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from types import TracebackType

import torch
from transformers import PreTrainedModel

from edgetune.core.errors import ConfigError, DataError
from edgetune.core.ledger import Ledger, write_ledger
from edgetune.data.encode import Example, batches, collate, encode_whole, padding_id, shorten
from edgetune.data.prompts import default_prompt
from edgetune.data.records import Record
from edgetune.federation.state import Checkpoint
from edgetune.federation.steps import take_steps
from edgetune.federation.worker import Worker
from edgetune.measure.evaluate import held_out_loss
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.spoken import with_tokenizer
from edgetune.tune import plain_model

ONLY_DEVICE = 0
LEAST_TOKENS = 8
AT_ONCE = 32
"""Records of a forward pass that measures."""
Texts = Sequence[Record | tuple[str, str]]
"""Records, or pairs of a prompt and its response."""


class Tuner:
    """A base model and one method, a step at a time; what it learns is a ledger.

        with Tuner("embedded", "mezo", learning_rate=2e-4, eps=3e-3) as tuner:
            for batch in batches:
                loss = tuner.step(batch)
            tuner.save("mine.ledger")

    Step t of a seed takes the same direction on every machine, so that the same batches give the same ledger.

    Args:
        base: model folder, GGUF file, Hub id or `embedded`.
        method: a name that `edgetune methods` lists, a .py file, which is executed, or a TuningMethod.
        seed: of directions and adapters, unsigned 32 bits.
        max_tokens: longest prompt and response together, at least 8; a longer prompt loses its middle. At most what the
            model holds.
        dtype: float32, float16 or bfloat16; None keeps the stored type.
        device: where the model is.
        options: of the method, as in a recipe's [method] section: `learning_rate`, `eps`, `rank`, ... A step takes the
            batch that it is given, so that `batch_size` and `local_steps` have no part.

    Raises:
        ConfigError: if the method or an option is wrong, naming the nearest; if the method is private.
        ModelError: if the base cannot be loaded.
    Cost: one copy of the model; a step costs what the method's does.
    """

    def __init__(
        self,
        base: str | Path,
        method: str | Path | TuningMethod,
        *,
        seed: int = 0,
        max_tokens: int = 256,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
        **options: object,
    ) -> None:
        if not 0 <= seed < 1 << 32:
            raise ConfigError(f"the seed is {seed}, not an unsigned number of 32 bits", where="seed")
        named = method if isinstance(method, TuningMethod) else tuning_method(str(method))
        self.method = dataclasses.replace(with_options(named, options), local_steps=1)
        if self.method.private:
            raise ConfigError(
                "privacy is accounted for batches that are drawn by chance, and here they are given",
                where=f"method {self.method.name}",
                hint=f"edgetune tune {self.method.name}",
            )
        self.method.check_alone()
        self.seed, self.steps = seed, 0
        backbone = load_backbone(base, dtype=dtype, device=device)
        self._worker = Worker(backbone, self.method, seed)
        self._optimiser = self.method.local.start(self._worker.tuned)
        self._pad_id, self._open = padding_id(backbone.tokenizer), ExitStack()
        prompt = default_prompt(backbone.tokenizer)
        self._prompt, self._longest = prompt, _longest(backbone, self.method, max_tokens)
        self._renderer = self._open.enter_context(prompt.renderer(backbone.tokenizer))
        self._set_aside()

    def __enter__(self) -> Tuner:
        """Return this tuner; the end of the block ends the process that renders its prompts."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the process that renders prompts; the model and the ledger stay."""
        self._open.close()

    def step(self, batch: Texts) -> float:
        """Take one step on a batch.

        Returns:
            The mean objective over the step's points (nats a response token if it is the loss); NaN if the step was
            dropped because it was not finite.

        Raises:
            DataError: if the batch is empty, or a text cannot be encoded.
        """
        examples = self._examples(batch)
        self.steps += 1
        taken = take_steps(
            self.method,
            self._worker.tuned,
            iter([collate(examples, self._pad_id)]),
            self.method.keys(self.seed, self.steps, ONLY_DEVICE),
            self._optimiser,
            round=self.steps,
            objective=self._worker.objective,
        )
        return taken.loss

    def loss(self, batch: Texts) -> float:
        """Return the mean loss on records that nothing is learnt from, nats a response token."""
        examples = self._examples(batch)
        return held_out_loss(self._worker.tuned.model, batches(examples, AT_ONCE, self._pad_id)).loss

    def save(self, path: str | Path) -> Ledger:
        """Write what was learnt as a ledger, which `load` applies to the base; the loop can go on.

        The weights become those that the ledger gives, which may differ from the steps' by the rounding of additions.

        Raises:
            OutputError: if the file cannot be written.
        """
        tuned = self._worker.tuned
        tuned.reset(tuned.state())
        name = sha256(f"{self.method.digest} {self.seed}".encode()).hexdigest()
        checkpoint = Checkpoint(Path(path), self._worker, f"tuner-{name}")
        ledger = checkpoint.ledger(tuned.state(), self.steps, tuned)
        write_ledger(checkpoint.path, ledger)
        self._set_aside()
        return ledger

    def model(self) -> PreTrainedModel:
        """Return the tuned model as transformers knows it, with its tokenizer as `load` does; the tuner ends here."""
        self.close()
        return with_tokenizer(plain_model(self._worker.tuned), self._worker.backbone.tokenizer)

    def _examples(self, batch: Texts) -> list[Example]:
        records = [one if isinstance(one, Record) else Record(one[0], "", one[1], "") for one in batch]
        if not records:
            raise DataError("a batch has at least one record")
        encoded = encode_whole(records, self._worker.backbone.tokenizer, self._prompt, self._renderer)
        return [shorten(one.example, self._longest) for one in encoded]

    def _set_aside(self) -> None:
        if self._optimiser:  # its steps move directions again, which the ledger adds up
            self._worker.tuned.keep(self._worker.scratch)


def _longest(backbone: Backbone, method: TuningMethod, most: int) -> int:
    """Return how many tokens a record may have, so that an answer that is scored fits behind its prompt."""
    holds = int(getattr(backbone.model.config, "max_position_embeddings", 0) or most)
    longest = min(most, holds - (method.objective.max_new_tokens if method.objective else 0))
    if longest < LEAST_TOKENS:
        raise ConfigError(f"a record has at least {LEAST_TOKENS} tokens, not {longest}", where="max_tokens")
    return longest
