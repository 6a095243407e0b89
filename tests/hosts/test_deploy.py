"""What deploys a fleet is right, and its checker finds what is not: every case breaks a copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

from check_deploy import check  # noqa: E402
from deploy_commands import commands_of, expanded, fault_of, spoken  # noqa: E402

COPIED = ("constraints.txt", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture
def cli() -> Any:
    """A command line that has what the files here use; the real one is asked by the last test."""
    app = typer.Typer()

    @app.command()
    def certs(out: Path, devices: int = 1, host: list[str] | None = None) -> None: ...

    @app.command()
    def split(out: Path, devices: int = 1) -> None: ...

    @app.command()
    def server(
        recipe: Annotated[str, typer.Argument()] = "",
        *,
        out: Annotated[Path, typer.Option()],
        listen: Annotated[str, typer.Option()],
        certs: Path | None = None,
        rounds: int = 1,
        participation: float = 1,
        timeout: float = 1,
        wait: int = 1,
    ) -> None: ...

    @app.command()
    def device(
        server: Annotated[str, typer.Option()],
        data: Annotated[Path, typer.Option()],
        key: Annotated[Path, typer.Option()],
        ca: Path | None = None,
        state: Path | None = None,
        columns: str = "",
        only_when: str = "",
        max_threads: int = 1,
        max_memory: str = "",
        *,
        quiet: bool = False,
    ) -> None: ...

    @app.command()
    def status(target: str, certs: Path | None = None, watch: bool = False) -> None: ...

    @app.command()
    def federate(
        method: str,
        *,
        out: Annotated[Path, typer.Option()],
        devices: int = 1,
        participation: float = 1,
        rounds: int = 1,
    ) -> None: ...

    @app.command()
    def methods() -> None: ...

    return typer.main.get_command(app)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with what is deployed."""
    for name in COPIED:
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("src", "docs"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "docs" / "fleet.md", tmp_path / "docs")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    return tmp_path


def test_what_is_deployed_is_right_and_what_cannot_be_checked_is_said(copy: Path, cli: Any) -> None:
    found = check(copy, cli)
    assert found.wrong == []
    assert any("Docker daemon" in one for one in found.unchecked)


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("edgetune-server.service", "NoNewPrivileges=yes\n", "", "lacks NoNewPrivileges=yes"),
        ("edgetune-server.service", "User=edgetune", "User=root", "runs as root"),
        ("edgetune-server.service", "--out /var/lib/edgetune/run", "--out /srv/run", "/srv/run is none of"),
        ("edgetune-server.service", "--listen ", "--lissten ", "lissten'"),
        ("edgetune-device@.service", "RestartSec=30\n", "", "comes back without a pause"),
        ("edgetune-device@.service", "#MemoryMax=1G\n", "", "does not show where memory is limited"),
        ("edgetune-device@.service", "${DATA}", "${FILE}", "device.env: does not set FILE"),
        ("edgetune-device@.service", "--key /etc/edgetune/keys/%i.key ", "", "Missing option '--key'"),
        ("server.env", "--rounds 100", "--rounds many", "'many' is not a valid int"),
        ("Dockerfile", "torch==2.13.0", "torch", "does not install torch==2.13.0 first"),
        ("Dockerfile", "pip install -c constraints.txt '.[", "pip install '.[", "without the pinned versions"),
        ("Dockerfile", "[flower,deploy]", "[flower,deplo]", "pyproject.toml has no extra 'deplo'"),
        ("Dockerfile", "USER edgetune\n", "", "runs as root"),
        ("Dockerfile", "HEALTHCHECK --interval=60s", "# HEALTHCHECK --interval=60s", "has no HEALTHCHECK"),
        ("Dockerfile", "TORCH_INDEX=\n", "TORCH_INDEX=https://index.example/cpu\n", "names an address"),
        ("Dockerfile", "COPY src ./src", "COPY sources ./src", "copies sources, which is not there"),
        ("Dockerfile", "COPY constraints.txt", "COPI constraints.txt", "COPI is no instruction"),
        ("Dockerfile.dockerignore", "*\n!c", "!c", "lets in what is not named"),
        ("Dockerfile.dockerignore", "!setup.py\n", "", "keeps setup.py out"),
        ("compose.yaml", "  device-2:\n    <<: *device\n", "  gone:\n    <<: *device\n", "is not one server and three"),
        ("compose.yaml", "cap_drop: [ALL]", "cap_drop: []", "may write, or do more"),
        ("compose.yaml", "networks: [fleet]", "network_mode: host", "has the machine's network"),
        ("compose.yaml", '"certs:/certs"', '"/home:/certs"', "/home:/certs is no named volume"),
        ("compose.yaml", "      certs:\n        condition", "      keys:\n        condition", "waits for keys"),
        ("compose.yaml", "--key /certs/keys/1.key", "--keys /certs/keys/1.key", "compose.yaml, device-1: edgetune"),
        ("README.md", "edgetune certs certs", "edgetune certificates certs", "no command 'certificates'"),
        ("README.md", "device --server fleet", "device --serve fleet", "deploy/README.md: edgetune device"),
        ("../docs/fleet.md", "edgetune split shares", "edgetune split", "Missing argument 'OUT'"),
        ("../docs/fleet.md", "`edgetune status`", "`edgetune state`", "no command 'state'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(copy: Path, cli: Any, name: str, before: str, after: str, said: str) -> None:
    path = copy / "deploy" / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    assert any(said in one for one in check(copy, cli).wrong), check(copy, cli).wrong


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("PrivateTmp=yes", "PrivateTmp=yes\nPrivateTemp=yes", "PrivateTemp"),
        ("Restart=always", "Restart=alwayss\nRestart=always #", "alwayss"),
        ("SystemCallFilter=", "#SystemCallFilter=", "exposure "),
    ],
)
def test_what_systemd_would_ignore_or_allow_is_found(
    copy: Path, cli: Any, before: str, after: str, said: str
) -> None:
    path = copy / "deploy" / "edgetune-device@.service"
    path.write_text(path.read_text().replace(before, after))
    if said == "exposure ":
        path.write_text(
            path.read_text().replace("Restrict", "#Restrict").replace("ProtectKernel", "#ProtectKernel")
        )
    assert any(said in one for one in check(copy, cli).wrong)


def test_a_machine_without_tools_is_told_what_was_not_checked(
    copy: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = check(copy, cli)
    assert found.wrong == []
    assert {one.split(":")[0] for one in found.unchecked} >= {
        "whether systemd reads the units", "whether Docker reads the compose file"
    }  # fmt: skip


def test_commands_are_found_in_lines_for_a_shell() -> None:
    assert spoken("sudo -u edgetune /opt/edgetune/bin/edgetune status /run  # how it is") == [
        "status",
        "/run",
    ]
    assert spoken("edgetune server a --out 'b c' & ") == ["server", "a", "--out", "b c"]
    assert spoken("docker run -e A=b edgetune device --key k") == ["device", "--key", "k"]
    assert spoken("edgetune status run | tee log") == ["status", "run"]
    for other in ("docker build -t edgetune .", "useradd edgetune", "pip install edgetune", "echo 'open", ""):
        assert spoken(other) == []


def test_settings_of_a_unit_are_expanded_as_systemd_does() -> None:
    values = {"A": "one two", "B": "three four", "NONE": ""}
    assert expanded("x ${A} $B $NONE %i", values) == ["x", "one two", "three", "four", "0"]


def test_every_kind_of_file_has_commands(copy: Path) -> None:
    where = {one.split(",")[0] for one, _, _ in commands_of(copy)}
    units = {"edgetune-server.service", "edgetune-device@.service"}
    assert where == units | {"compose.yaml", "deploy/README.md", "docs/fleet.md"}


def test_the_commands_are_those_of_the_command_line() -> None:
    from edgetune.cli.app import app

    real: Any = typer.main.get_command(app)
    found = [(where, words, fault_of(real, words, whole=whole)) for where, words, whole in commands_of(ROOT)]
    assert [one for one in found if one[2]] == []


def test_the_checker_ends_with_1_where_something_is_wrong(copy: Path) -> None:
    path = copy / "deploy" / "Dockerfile"
    path.write_text(path.read_text().replace("USER edgetune", "USER root"))
    words = [sys.executable, str(ROOT / "scripts" / "check_deploy.py"), str(copy)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "WRONG: Dockerfile: runs as root" in done.stdout
    assert "not checked: " in done.stdout
