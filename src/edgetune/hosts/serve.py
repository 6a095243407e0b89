"""The server of a federation across hosts: a run whose devices are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.errors import ConfigError
from edgetune.core.events import Listener, ignore
from edgetune.core.progress import Progress, silent
from edgetune.hosts.keys import check_hosts, registered, server_files
from edgetune.hosts.status import Statuses
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.sections import FleetSection

if TYPE_CHECKING:
    from edgetune.run.stage import File, Model


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens, and for how long it waits.

    Args:
        certs: the folder of `edgetune certs`.
        host: name or address of this machine's that it listens on.
        port: 0 takes a free one.
        insecure: without TLS: whoever is on the way reads everything; keys are still asked for.
        timeout: seconds after which a round takes no more replies, if it has the recipe's minimum.
        wait: devices that must be there before the first round; those of a round if not given.
    """

    certs: Path
    host: str
    port: int
    insecure: bool = False
    timeout: float = 600.0
    wait: int | None = None


def serve(
    resolve: Callable[[], Recipe],
    out: Path,
    where: Listening,
    *,
    command: str = "edgetune server",
    listener: Listener = ignore,
    progress: Progress = silent,
    say: Callable[[str], None],
) -> Model | File:
    """Do a recipe's run with devices on other hosts; a killed one with the same recipe and folder goes on.

    It listens before it imports what computes, which takes seconds: devices that lost a server find the next one
    meanwhile.

    Args:
        resolve: makes the recipe of the run; its data are the server's own, held out or sampled for what is found
            before the run.
        out: folder of the results.
        where: where to listen.
        command: for the report.
        listener: told of every event.
        progress: told how far long work is.
        say: told in one line where it listens.

    Raises:
        ConfigError: keys, certificate or recipe cannot be served with.
        MissingExtraError: Flower is not installed.
        EdgetuneError: as `run.pipeline.run`.
    """
    from edgetune.hosts.flower.switches import switch_off

    switch_off()
    from edgetune.hosts.flower.serving import Serving

    files, keys = server_files(where.certs), registered(where.certs)
    check_hosts(files.certificate, where.host)
    if where.wait is not None and not 0 <= where.wait <= len(keys):
        raise ConfigError(f"there are {len(keys)} devices", where="--wait", hint=f"0 to {len(keys)}")
    certificate = None if where.insecure else (files.certificate, files.key)
    with Serving(
        keys,
        (where.host, where.port),
        certificate,
        token=files.token,
        status=Statuses(out).now,
        ends=files.ends,
    ) as link:
        secured = "without TLS" if where.insecure else f"certificate until {files.ends:%Y-%m-%d}"
        say(f"listening on {where.host}:{link.port}, {len(keys)} keys, {secured}; telemetry is off")
        recipe = served(resolve(), len(keys))
        from edgetune.hosts.fleet import Fleet
        from edgetune.hosts.shown import Shown
        from edgetune.run import pipeline

        shown = Shown(out, recipe.federation.rounds, len(keys))
        return pipeline.run(
            recipe, out, command=command, listener=listener, progress=progress,
            stages=recipe.stages or pipeline.TUNING,
            elsewhere=Fleet(link, sorted(keys), out, shown, timeout=where.timeout, wait=where.wait, say=say),
        )  # fmt: skip


def served(recipe: Recipe, devices: int) -> Recipe:
    """Return a recipe with the number of its devices, which is that of the keys.

    Raises:
        ConfigError: if it describes what only a simulation has, or a round would need more replies than it asks for.
    """
    from edgetune.hosts.lessons import refuse_files_of_code  # seconds: see `serve`
    from edgetune.recipe.asking import asked_devices

    section = recipe.federation
    refuse_files_of_code(recipe)
    if recipe.stages is not None and "tune" not in recipe.stages:
        raise ConfigError(
            "without the stage tune there is nothing for devices to do", where="stages",
            hint="edgetune run does stages without them",
        )  # fmt: skip
    if recipe.fleet != FleetSection():
        raise ConfigError(
            "a recipe for real devices says nothing of how simulated ones behave", where="fleet"
        )
    if section.buffer is not None:
        raise ConfigError(
            "a server of real devices closes its rounds", where="federation.buffer",
            hint="leave it out; over_selection and minimum_replies keep a round from waiting for the slowest",
        )  # fmt: skip
    if section.devices not in (None, devices):
        raise ConfigError(
            f"the recipe has {section.devices} devices, and {devices} have a key", where="federation.devices",
            hint="leave it out",
        )  # fmt: skip
    wanted = asked_devices(devices, section.participation)
    if section.minimum_replies > wanted:
        raise ConfigError(
            f"a round waits for {wanted} of {devices} devices, fewer than the {section.minimum_replies} that it needs",
            where="federation.minimum_replies",
            hint=f"at most {wanted}, or a larger federation.participation",
        )
    return recipe.model_copy(update={"federation": section.model_copy(update={"devices": devices})})
