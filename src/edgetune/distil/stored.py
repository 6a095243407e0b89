"""What a teacher said of records, kept in a file: for devices that cannot hold the teacher."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import DataError
from edgetune.core.files import write_atomic
from edgetune.core.heads import Rows
from edgetune.core.jensen_shannon import JensenShannon
from edgetune.data.encode import Example
from edgetune.distil.teacher import Teacher, Where

FORMAT = "edgetune teacher logits 1"
KINDS = {
    "tokens": torch.int32, "log_probabilities": torch.float16, "tail": torch.float32, "starts": torch.int64,
    "records": torch.uint8,
}  # fmt: skip
LEAST = -100.0
"""Log-probability of a tail that rounds to nothing."""
HINT = "edgetune teach with the same --model, --data, --seed and settings of [data] makes one"


class Said(NamedTuple):
    """What a teacher said at some positions.

    Args:
        tokens: the likeliest, int32 [tokens, k].
        log_probabilities: theirs, float16 [tokens, k].
        tail: of all others together, float32 [tokens].
    """

    tokens: torch.Tensor
    log_probabilities: torch.Tensor
    tail: torch.Tensor


class StoredTeacher(Teacher):
    """The likeliest tokens of a teacher and the mass of all others, at every response position of known records.

        P^ = (p_1 ... p_k, 1 - sum_i p_i),   Q^ the student's on the same k + 1 outcomes,   D(P^, Q^) <= D(P, Q)

    Joining outcomes never makes distributions easier to tell apart: the divergence is a lower bound, and exact where k
    is the vocabulary. It is about the very tokens of these records, so that nothing can be sampled.

    Args:
        path: written by `write_said`.
        vocabulary: `vocabulary_digest` of the student's tokenizer.

    Raises:
        DataError: it is no such file, is damaged, or of another vocabulary.
    Cost: 6 k bytes a token on disk (384 of 64), read whole once, then as batches ask.
    Source: top-k logits as in huggingface/trl issue 2255; the bound is the data-processing inequality.
    """

    def __init__(self, path: Path, vocabulary: str) -> None:
        said, tensors = _opened(path)
        if said.get("vocabulary_digest") != vocabulary:
            raise DataError("the teacher's tokens are not the student's", where=path, hint=HINT)
        super().__init__(said["digest"], said["teacher"])
        self.path, self.vocabulary, self.top = path, int(said["vocabulary"]), tensors["tokens"].shape[1]
        self.largest = int(tensors["tokens"].max())
        """Number of the greatest token that it names: the student must have it."""
        self._starts = tensors["starts"].tolist()
        self._places = {one.tobytes(): place for place, one in enumerate(tensors["records"].numpy())}

    @property
    def shared(self) -> str:
        """SHA-256 of who said it and how much at a position: files of other records have it too."""
        return sha256(f"{self.named} {self.top} {self.vocabulary}".encode()).hexdigest()

    def missing(self, examples: Iterable[Example]) -> int:
        """Return how many records it knows nothing of."""
        return sum(record_key(one.input_ids, one.response_start) not in self._places for one in examples)

    def rows(self, batch: Batch, where: Where) -> Rows:
        """Return tokens int64 [tokens, k], their log-probabilities float32 [tokens, k] and the tail's [tokens].

        Raises:
            DataError: if a record is another.
        """
        found: tuple[list[torch.Tensor], ...] = ([], [], [])
        with safe_open(self.path, "pt") as file:
            parts = [file.get_slice(name) for name in ("tokens", "log_probabilities", "tail")]
            for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
                place = self._place(ids, mask, labels)
                for kept, part in zip(found, parts, strict=True):
                    kept.append(part[self._starts[place] : self._starts[place + 1]])
        tokens, known, tail = (torch.cat(one).to(batch.input_ids.device) for one in found)
        return tokens.long(), known.float(), tail

    def divergence(self, kind: JensenShannon, student: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        """Return the divergence of the joined distributions."""
        tokens, known, tail = rows
        ours = student[:, : self.vocabulary].log_softmax(-1)
        said, top = known, ours.gather(1, tokens)
        if tokens.shape[1] < ours.shape[1]:
            rest = ours.scatter(1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
            said, top = torch.cat([known, tail.unsqueeze(1)], 1), torch.cat([top, rest], 1)
        return kind(top, said.log_softmax(-1))  # 16-bit numbers sum to nearly one

    def _place(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> int:
        length, said = int(mask.sum()), torch.nonzero(labels != IGNORED)
        start = int(said[0, 0]) if len(said) else length
        place = self._places.get(record_key(ids[:length].tolist(), start))
        if place is None:
            raise DataError("the teacher said nothing of a record", where=self.path, hint=HINT)
        return place


@torch.no_grad()
def said_of(logits: torch.Tensor, many: int) -> Said:
    """Return the likeliest tokens and the mass of the rest.

    Args:
        logits: float [tokens, vocabulary].
        many: k, at most the vocabulary.
    """
    every = logits.float().log_softmax(-1)
    top = every.topk(min(many, every.shape[1]), dim=-1)
    rest = every.scatter(1, top.indices, -torch.inf).logsumexp(-1).clamp(min=LEAST)
    return Said(top.indices.int(), top.values.half(), rest)


def write_said(
    path: Path,
    examples: Sequence[Example],
    said: Sequence[Said],
    *,
    teacher: str,
    vocabulary: int,
    vocabulary_digest: str,
) -> None:
    """Write what a teacher said, atomically.

    Args:
        path: of the file.
        examples: the records; equal ones are kept once.
        said: `said_of` of the positions behind which each one's response tokens follow.
        teacher: digest of the teacher.
        vocabulary: tokens that its head tells apart.
        vocabulary_digest: of the tokenizer.

    Raises:
        DataError: no records.
        OutputError: if it cannot be written.
    """
    if not examples:
        raise DataError("there are no records to say anything of", where=path)
    keys = [record_key(one.input_ids, one.response_start) for one in examples]
    kept = list({key: place for place, key in enumerate(keys)}.values())
    columns = [torch.cat([said[place][column].cpu() for place in kept]).contiguous() for column in range(3)]
    starts = torch.tensor([0, *(len(said[place][0]) for place in kept)]).cumsum(0)
    records = torch.tensor([list(keys[place]) for place in kept], dtype=torch.uint8)
    tensors = dict(zip(KINDS, (*columns, starts, records), strict=True))
    digest = sha256(teacher.encode())
    for one in tensors.values():
        digest.update(one.numpy().tobytes())
    words = {
        "format": FORMAT, "teacher": teacher, "digest": digest.hexdigest(), "vocabulary": str(vocabulary),
        "vocabulary_digest": vocabulary_digest,
    }  # fmt: skip
    write_atomic(path, lambda partial: save_file(tensors, partial, metadata=words))


def record_key(ids: Sequence[int], response_start: int) -> bytes:
    """Return the SHA-256 of a record's tokens and of where its response starts, 32 bytes."""
    return sha256(array("q", (response_start, *ids))).digest()


def vocabulary_digest(vocabulary: dict[str, int]) -> str:
    """Return the SHA-256 of a tokenizer's tokens with their numbers."""
    return sha256(
        "\n".join(f"{number} {word!r}" for word, number in sorted(vocabulary.items())).encode()
    ).hexdigest()


def _opened(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return metadata and tensors of a file that fit each other and its digest.

    Raises:
        DataError: saying what is wrong.
    """
    try:
        with safe_open(path, "pt") as file:
            said, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError("cannot read what the teacher said", where=path, hint=HINT) from error
    if said.get("format") != FORMAT or {name: one.dtype for name, one in tensors.items()} != KINDS:
        raise DataError("this is no file of a teacher's logits", where=path, hint=HINT)
    digest = sha256(said.get("teacher", "").encode())
    for name in KINDS:
        digest.update(tensors[name].contiguous().numpy().tobytes())
    starts, many = tensors["starts"], len(tensors["tokens"])
    fits = many > 0 and int(tensors["tokens"].min()) >= 0
    fits = (
        fits
        and tensors["tokens"].shape == tensors["log_probabilities"].shape
        and len(tensors["tail"]) == many
    )
    fits = (
        fits
        and int(starts[0]) == 0
        and int(starts[-1]) == many
        and len(starts) == len(tensors["records"]) + 1
    )
    if not fits or digest.hexdigest() != said.get("digest") or not said.get("vocabulary", "").isdigit():
        raise DataError("what the teacher said is damaged", where=path, hint=HINT)
    return said, tensors
