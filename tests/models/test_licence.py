from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.models.embedded import embedded_folder
from edgetune.models.licence import licence_of


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\nlanguage: en\n---\n# A model\n", "mit"),
        ("---\r\nlicense: apache-2.0\r\n---\r\n", "apache-2.0"),
        ("# A model\n\nlicense: mit\n", ""),
        ("---\nlicense: [mit, gpl]\n---\n", ""),
        ("---\nlicense: 'two\n---\n", ""),
        ("---\n!!python/object/apply:os.system ['true']\n---\n", ""),
        ("---\n- license\n---\n", ""),
        ('---\nlicense: "a\\u0007b"\n---\n', ""),
    ],
)
def test_it_is_read_from_the_metadata_of_a_card(tmp_path: Path, card: str, licence: str) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licence_of(tmp_path) == licence


def test_a_folder_without_a_card_names_none(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == ""


def test_bytes_that_are_no_text_name_none(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe---\n\x00")
    assert licence_of(tmp_path) == ""


def test_a_gguf_file_names_its_own(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_license("llama3.2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert licence_of(tmp_path / "a.gguf") == "llama3.2"


def test_the_shipped_model_names_its_own() -> None:
    assert licence_of(embedded_folder()) == "apache-2.0"
