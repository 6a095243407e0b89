"""What `learning.py` can answer: a study is a page, with its columns of directions and the pairs that it compares."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.report import svg


@dataclass(frozen=True, slots=True)
class Column:
    """One way to choose directions, as a column of a page.

    Args:
        label: heads the column.
        fresh: kind of its fresh directions; empty if it has none.
        pooled: kind of its pools; empty if it has none.
        colour: in the figure.
        mark: of matplotlib.
    """

    label: str
    fresh: str
    pooled: str
    colour: str
    mark: str

    def kind(self, pool: int) -> str:
        """Return the kind at a pool size, 0 for fresh directions; empty if there is none."""
        return self.pooled if pool else self.fresh


@dataclass(frozen=True, slots=True)
class Study:
    """A page.

    Args:
        name: of the page, its figure and the folder of its runs.
        title: the question.
        verb: of the Makefile.
        about: what the columns are; a paragraph, or empty.
        columns: the last one is in question.
        pairs: compared columns, of the one in question first; others are a control: how far two that are known
            to be equal differ by chance.
        pools: K.
        after: ends the page.
    """

    name: str
    title: str
    verb: str
    columns: tuple[Column, ...]
    pairs: tuple[tuple[str, str], ...]
    pools: tuple[int, ...]
    about: str = ""
    after: str = ""

    @property
    def subject(self) -> str:
        """Label of the column in question."""
        return self.columns[-1].label

    @property
    def judged(self) -> tuple[tuple[str, str], ...]:
        """The pairs of the column in question."""
        return tuple(pair for pair in self.pairs if pair[0] == self.subject)

    @property
    def control(self) -> tuple[tuple[str, str], ...]:
        """The other pairs."""
        return tuple(pair for pair in self.pairs if pair[0] != self.subject)

    def label(self, kind: str, pool: int) -> str:
        """Return the column that a kind at a pool size belongs to."""
        return next(column.label for column in self.columns if column.kind(pool) == kind)


LEARNING = Study(
    name="learning",
    title="Does a Hadamard pool learn as well as independent pools?",
    verb="bench-learning",
    columns=(
        Column("gaussian", "gaussian", "gaussian", svg.GREEN, "s"),
        Column("rademacher", "rademacher", "rademacher", svg.ORANGE, "^"),
        Column("hadamard", "", "hadamard", svg.BLUE, "o"),
    ),
    pairs=(("hadamard", "rademacher"), ("hadamard", "gaussian"), ("rademacher", "gaussian")),
    pools=(16, 64, 256, 1024, 4096),
)
RANK_ONE = Study(
    name="rank-one",
    title="Do directions of rank one learn as well as dense ones?",
    verb="bench-rank-one",
    columns=(
        Column("dense", "rademacher", "hadamard", svg.ORANGE, "^"),
        Column("rank one", "rank_one", "rank_one_pool", svg.BLUE, "o"),
    ),
    pairs=(("rank one", "dense"),),
    pools=(256, 1024, 4096, 16384),
    about="""Dense: fresh Rademacher directions and Hadamard pools. Rank one: `rank_one`, fresh, and `rank_one_pool`,
tiles of 16 x 16 to 128 x 128. Those of 128 x 128 have more rows or columns than every matrix of stories260K, and more
rows than keys and values of the embedded model, so that some of the K directions coincide there.""",
    after="""## A real model

SmolLM2-135M-Instruct, two seeds of 200 steps: [rank-one-smollm2.md](rank-one-smollm2.md).
Three seeds of all steps, half a day on a CPU:

    .venv/bin/python benchmarks/learning.py --study rank-one --task dolly --model FILE.gguf --seeds 3 \\
        --rate 3e-7 --rate 1e-6 --rate 3e-6 --rate 1e-5 \\
        --out out/rank-one-real --image out/rank-one-real/rank-one.png --work out/rank-one-real
""",
)
STUDIES = {study.name: study for study in (LEARNING, RANK_ONE)}
