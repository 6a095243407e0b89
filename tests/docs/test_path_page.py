"""Every command of docs/path.md works on a real pretrained model and a real task, in order, in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from walking import DOCS, walk

DATA = Path(os.environ.get("EDGETUNE_DATA", DOCS.parents[1] / "shared" / "data"))
MODEL = DATA / "models" / "stories260K"
TASK = DATA / "superni" / "task363_sst2_polarity_classification" / "train.json"
RECORDS = 120
"""Of the task's thousands, so that the page takes a minute."""


@pytest.mark.slow
def test_the_commands_of_the_path_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("gguf", "xllamacpp", "cryptography"):
        pytest.importorskip(library)
    if not (MODEL / "model.safetensors").exists() or not TASK.exists():
        pytest.skip(f"no model or task in {DATA}: set EDGETUNE_DATA to the folder of the shared data")
    shutil.copytree(MODEL, tmp_path / "my-model")
    task = json.loads(TASK.read_text("utf-8"))
    task["Instances"] = task["Instances"][:RECORDS]
    (tmp_path / "task.json").write_text(json.dumps(task), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    assert walk("path.md", capsys) >= 12
    assert not (tmp_path / "model.gguf.edgetune").exists()
