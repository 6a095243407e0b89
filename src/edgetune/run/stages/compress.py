"""Compress in one shot, write the planned file, and check it in llama.cpp."""

from pathlib import Path

from transformers import PreTrainedModel

from edgetune.export.checked import deploy
from edgetune.recipe.preflight import compression_of
from edgetune.run.deploy import compress_to_file, solved_in, verify_file
from edgetune.run.names import SOLVED
from edgetune.run.stage import File, Model, Stage
from edgetune.run.work import Work


def _work(work: Work, given: Model) -> File:
    chosen = compression_of(work.prepared.recipe)
    grids, plan = work.allotment(given.model, chosen).grids, work.planned()
    matrices = sum(weight.ndim == 2 for weight in given.model.parameters())
    before = work.reference(given.model)

    def write(file: Path) -> None:
        def compressed() -> PreTrainedModel:
            compress_to_file(
                given.model, chosen, file, work.prepared, plan, ledger=given.ledger,
                listener=work.with_bar("matrices", matrices), grids=grids, scratch=scratch,
            )  # fmt: skip
            return given.model

        work.measured("compressed", compressed, lambda: file.stat().st_size, beside=before)

    with solved_in(work.out / SOLVED) as scratch:
        work.tell(
            deploy(work.model_path, write, lambda file: verify_file(file, given.model, work.prepared, plan))
        )
    return File(work.model_path)


STAGE = Stage(
    name="compress",
    summary="Compresses in one shot, writes the very codes it chose as GGUF, and checks the file in llama.cpp.",
    cost="`edgetune methods optq`; a pass over the calibration records",
    takes=Model,
    gives=File,
    work=_work,
    writes=compression_of,
)
