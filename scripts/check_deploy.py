"""Check what deploys a fleet as far as this machine allows: units, image, compose file, and the commands in them.

    python scripts/check_deploy.py [ROOT]

Needs no daemon and no network. What cannot be checked here is said, with the reason; anything wrong is exit code 1.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import yaml

from deploy_commands import ENVIRONMENTS, commands_of, environment, fault_of

HARDENED = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "CapabilityBoundingSet=",
    "PrivateTmp=yes",
)
OURS = ("/etc/edgetune/", "/var/lib/edgetune", "/var/cache/edgetune", "/opt/edgetune/")
EXPOSED = 2.5
"""What `systemd-analyze security` may say at most, from 0, can do nothing, to 10, can do everything."""
INSTRUCTIONS = frozenset(
    (
        "ARG",
        "FROM",
        "ENV",
        "RUN",
        "COPY",
        "USER",
        "WORKDIR",
        "VOLUME",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    )
)
THIRD = re.compile(r"https?://|\b[\w-]+\.[\w.-]+/[\w./-]+:\w")
"""An address of an index or a registry."""


@dataclass
class Found:
    """What was checked, what could not be, and what is wrong."""

    right: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def need(self, holds: object, where: str, what: str) -> None:
        """Note a fault unless something holds."""
        if not holds:
            self.wrong.append(f"{where}: {what}")


def check(root: Path, cli: Any) -> Found:
    """Check everything.

    Args:
        root: of the repository.
        cli: the command line as click has it.
    """
    found = Found()
    check_units(root, found)
    check_image(root, found)
    check_compose(root, found)
    commands = list(commands_of(root))
    found.need(len(commands) >= 10, "deploy", f"only {len(commands)} commands of edgetune were found in it")
    for where, words, whole in commands:
        fault = fault_of(cli, words, whole=whole)
        found.need(not fault, where, f"edgetune {shlex.join(words)}: {fault}")
    found.right += [
        f"{part}, as far as is not said below"
        for part in ("units", "image", "compose file", f"{len(commands)} commands")
    ]
    return found


def check_units(root: Path, found: Found) -> None:
    """Check that the units are hardened, come back, and write where they may."""
    for name in ENVIRONMENTS:
        text = (root / "deploy" / name).read_text(encoding="utf-8")
        said = [line for line in text.splitlines() if line and not line.startswith("#")]
        for setting in HARDENED:
            found.need(setting in said, name, f"lacks {setting}")
        found.need(re.search(r"^Restart=(always|on-failure)$", text, re.M), name, "does not come back")
        found.need(re.search(r"^RestartSec=\d+$", text, re.M), name, "comes back without a pause")
        found.need(re.search(r"^#MemoryMax=", text, re.M), name, "does not show where memory is limited")
        found.need(
            any(line.startswith("EnvironmentFile=/etc/edgetune/") for line in said), name, "has no settings"
        )
        found.need(re.search(r"^(User=(?!root)\w+|DynamicUser=yes)$", text, re.M), name, "runs as root")
        for path in re.findall(r"(?<![\w.])/(?:etc|var|opt|srv|home|root)/[^\s:,]*", "\n".join(said)):
            found.need(path.startswith(OURS), name, f"{path} is none of {', '.join(OURS)}")
        needed = set(re.findall(r"\$\{?(\w+)", "\n".join(line for line in said if line.startswith("Exec"))))
        missing = needed - set(environment(root / "deploy" / ENVIRONMENTS[name]))
        found.need(not missing, ENVIRONMENTS[name], f"does not set {', '.join(sorted(missing))}")
    _verify(root, found)


def _verify(root: Path, found: Found) -> None:
    if shutil.which("systemd-analyze") is None:
        found.unchecked.append("whether systemd reads the units: there is no systemd-analyze here")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ENVIRONMENTS:
            text = (root / "deploy" / name).read_text(encoding="utf-8")
            copy = Path(folder) / name.replace("@.", "@0.")
            copy.write_text(re.sub(r"(?m)^(Exec\w+=)\S+", r"\1/bin/true", text), encoding="utf-8")
            done = _run("systemd-analyze", "verify", "--man=no", str(copy))
            # It warns of keys and values that it ignores with code 0.
            found.need(
                not done.returncode and not done.stderr.strip(), name, f"systemd: {done.stderr.strip()}"
            )
            done = _run("systemd-analyze", "security", "--offline=true", "--no-pager", str(copy))
            level = re.search(r"exposure level for .*: ([\d.]+)", done.stdout)
            if level is None:
                found.unchecked.append(f"how exposed {name} is: this systemd cannot say it of a file")
            else:
                found.need(float(level[1]) <= EXPOSED, name, f"exposure {level[1]}, more than {EXPOSED}")


def check_image(root: Path, found: Found) -> None:
    """Check that the image is built from the pinned versions and this repository alone, and runs without root."""
    name, text = "Dockerfile", (root / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    lines = instructions(text)
    for word, _ in lines:
        found.need(word in INSTRUCTIONS, name, f"{word} is no instruction that is used here")
    found.need(lines and lines[0][0] in ("ARG", "FROM"), name, "does not begin with what it is built from")
    for word, rest in lines:
        found.need(not THIRD.search(rest), name, f"names an address: {word} {rest}")
    installs = [
        one for word, rest in lines if word == "RUN" for one in rest.split("&&") if "pip install" in one
    ]
    found.need(len(installs) >= 2, name, "does not install torch first and then the package")
    for one in installs:
        found.need("-c constraints.txt" in one, name, f"without the pinned versions: {one.strip()}")
    pinned = re.search(r"^torch==\S+", (root / "constraints.txt").read_text(encoding="utf-8"), re.M)
    found.need(
        pinned and installs and pinned[0] in installs[0],
        name,
        f"does not install {pinned and pinned[0]} first",
    )
    extras = re.findall(r"'\.\[([\w,]+)\]'", " ".join(installs))
    offered = (root / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ",".join(extras).split(","):
        found.need(
            re.search(rf"^{extra} = \[", offered, re.M), name, f"pyproject.toml has no extra {extra!r}"
        )
    found.need("flower" in ",".join(extras), name, "does not install the extra flower")
    ignore = (root / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    found.need("*" in ignore, "Dockerfile.dockerignore", "lets in what is not named: data, keys, results")
    for source in (
        one for word, rest in lines if word == "COPY" for one in rest.split()[:-1] if "--from" not in rest
    ):
        found.need((root / source).exists(), name, f"copies {source}, which is not there")
        found.need(f"!{source}" in ignore, "Dockerfile.dockerignore", f"keeps {source} out, which is copied")
    last = max((at for at, (word, _) in enumerate(lines) if word == "FROM"), default=0)
    final = dict(lines[last:])
    found.need(final.get("USER", "root") not in ("root", "0"), name, "runs as root")
    found.need("HEALTHCHECK" in final, name, "has no HEALTHCHECK")
    found.need(final.get("ENTRYPOINT") == '["edgetune"]', name, "does not start edgetune without a shell")


def check_compose(root: Path, found: Found) -> None:
    """Check that the compose file has a server and three devices of one anchor, and keeps to itself."""
    path = root / "deploy" / "compose.yaml"
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    services: dict[str, Any] = whole["services"]
    devices = [one for name, one in services.items() if name.startswith("device")]
    found.need("server" in services and len(devices) == 3, path.name, "is not one server and three devices")
    kept = [
        {key: value for key, value in one.items() if key not in ("command", "volumes")} for one in devices
    ]
    found.need(
        all(one == kept[0] for one in kept), path.name, "devices differ in more than their key and data"
    )
    known = set(whole.get("volumes", {}))
    for name, one in services.items():
        where = f"{path.name}, {name}"
        found.need(
            "network_mode" not in one and not one.get("privileged"),
            where,
            "has the machine's network or rights",
        )
        found.need(
            one.get("read_only") and one.get("cap_drop") == ["ALL"],
            where,
            "may write, or do more than it needs",
        )
        for volume in one.get("volumes", []):
            found.need(volume.split(":")[0] in known, where, f"{volume} is no named volume")
        for other in one.get("depends_on", {}):
            found.need(other in services, where, f"waits for {other}, which is not there")
    if shutil.which("docker") is None:
        found.unchecked.append("whether Docker reads the compose file: there is no docker here")
    elif (asked := _run("docker", "compose", "version")).returncode:
        reason = asked.stderr.strip().splitlines()[0]
        found.unchecked.append(f"whether Docker reads the compose file: {reason}")
    else:
        done = _run("docker", "compose", "-f", str(path), "config", "--quiet")
        found.need(not done.returncode, path.name, done.stderr.strip())
    found.unchecked.append(
        "whether the image builds and the containers run: that needs a Docker daemon and an index"
    )


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, each as its word and the rest."""
    plain = re.sub(r"(?m)^\s*#.*\n", "", text)
    lines = re.sub(r"\\\n\s*", "", plain).splitlines()
    return [(word, rest) for word, _, rest in (line.strip().partition(" ") for line in lines) if word]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def main() -> int:
    """Check the repository that is named, or this one."""
    from edgetune.cli.app import app

    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    found = check(root, typer.main.get_command(app))
    for word, lines in (("right", found.right), ("not checked", found.unchecked), ("WRONG", found.wrong)):
        for line in lines:
            print(f"{word}: {line}")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
