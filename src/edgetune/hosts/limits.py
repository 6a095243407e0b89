"""What a device is willing to do: threads, memory, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgetune.core.errors import ConfigError, LimitError
from edgetune.core.progress import Progress, silent
from edgetune.core.sizes import parse_size
from edgetune.hosts.conditions import Condition, condition_of
from edgetune.measure.machine import resident_bytes, usable_memory


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device is willing to do; nothing of it is known to the server but the reason of a refusal.

    Memory is what the system counts as resident for this process, memory-mapped weights included once they are touched:
    the quantity of `peak_memory_bytes`. It is measured, not enforced by the system: a bound of the address space counts
    files that are only mapped, one of private data (RLIMIT_DATA) counts stacks that are never touched, and what is
    refused memory in the middle of native code ends the process. Where the system shall enforce it, start the device in
    a control group (systemd: MemoryMax=); its limit counts here as well.

    Args:
        max_threads: that torch computes with; None leaves them.
        max_memory: resident bytes of this process; None for no bound but the machine's.
        only_when: asked before every round.
        resident: measures this process.
        usable: bytes that the machine has left.

    Raises:
        ConfigError: if a bound is below 1.
    """

    max_threads: int | None = None
    max_memory: int | None = None
    only_when: Condition | None = None
    resident: Callable[[], int] = resident_bytes
    usable: Callable[[], int] = usable_memory

    def __post_init__(self) -> None:
        for where, bound in (("--max-threads", self.max_threads), ("--max-memory", self.max_memory)):
            if bound is not None and bound < 1:
                raise ConfigError(f"{bound} leaves nothing", where=where, hint="1 is the least")

    def refusal(self, needed_bytes: int) -> str | None:
        """Return why this device does no round now, None if it does.

        Args:
            needed_bytes: what the round adds at its peak to what is resident now.

        Cost: that of the condition, at most 10 seconds; microseconds for the memory.
        """
        return self.too_much(needed_bytes) or (self.only_when.refusal() if self.only_when else None)

    def too_much(self, needed: int, what: str = "the round") -> str | None:
        """Return why there is no memory for something, None if there is; the condition is not asked.

        Args:
            needed: bytes that it adds to what is resident now.
            what: it.
        """
        if self.max_memory is not None and (total := self.resident() + needed) > self.max_memory:
            return f"too little memory: {what} needs {_shown(total)}, {_shown(self.max_memory)} are allowed"
        if needed > (left := self.usable()):
            return f"too little memory: {what} needs {_shown(needed)} more, the machine has {_shown(left)}"
        return None

    def apply(self) -> None:
        """Let torch compute with no more threads than allowed; fewer stay fewer."""
        import torch  # seconds: a size on a command line is read without it

        if self.max_threads is not None:
            torch.set_num_threads(min(self.max_threads, torch.get_num_threads()))

    @contextmanager
    def watch(self, progress: Progress = silent) -> Iterator[Progress]:
        """Bound a round while it goes on.

        Args:
            progress: who else is told how far it is.

        Yields:
            What the round is to tell after each step.

        Raises:
            LimitError: after the first step that leaves more resident than `max_memory`; if the system itself has no
                more memory for the block.
        Cost: 20 microseconds a step.
        """

        def checked(what: str, done: float, total: int) -> None:
            resident = self.resident() if self.max_memory is not None else 0
            if self.max_memory is not None and resident > self.max_memory:
                raise LimitError(
                    f"the round came to {_shown(resident)}, {_shown(self.max_memory)} are allowed",
                    where="--max-memory",
                )
            progress(what, done, total)

        try:
            yield checked
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise LimitError("there was no more memory in the middle of the round") from error


def limits_of(
    max_threads: int | None = None, max_memory: str | None = None, only_when: str | None = None
) -> Limits:
    """Read limits as the options of a command line say them.

    Raises:
        ConfigError: for what cannot be read, and a condition that this machine cannot tell.
    """
    return Limits(
        max_threads,
        None if max_memory is None else parse_size(max_memory, "--max-memory"),
        None if only_when is None else condition_of(only_when),
    )


def _out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out: torch has a class for it on a GPU, and on a CPU only a sentence."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _shown(size: int) -> str:
    return f"{size:,} B"
