"""The table of families in docs/formats.md says of each what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from edgetune.export.architectures import ARCHITECTURES
from edgetune.export.onnx_graph import FAMILIES
from edgetune.export.pte_program import FAMILIES as PROGRAMS

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
ROW = re.compile(r"^\| [^|]+ \| `(\w+)` \| (verified|no) \| (verified|no) \| (verified|no) \|", re.MULTILINE)


def test_what_is_verified_is_written_and_what_is_not_is_refused() -> None:
    rows = {kind: tuple(one == "verified" for one in said) for kind, *said in ROW.findall(PAGE.read_text())}
    assert len(rows) == 12
    assert rows == {kind: (kind in ARCHITECTURES, kind in FAMILIES, kind in PROGRAMS) for kind in rows}


def test_the_number_of_families_is_that_of_the_pages() -> None:
    for page in (PAGE, PAGE.parents[1] / "README.md"):
        found = re.search(
            r"(?:all|and) (\d+)(?: and the figures| families become GGUF files)", page.read_text()
        )
        assert found is not None
        assert int(found[1]) == len(ARCHITECTURES), page
