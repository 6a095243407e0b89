"""Write the model as it is, in half precision, and check the file in llama.cpp."""

from edgetune.export.checked import deploy
from edgetune.run.deploy import verify_file, write_in_half
from edgetune.run.stage import File, Model, Stage
from edgetune.run.work import Work


def _work(work: Work, given: Model) -> File:
    prepared, plan = work.prepared, work.planned()
    checked = deploy(
        work.model_path,
        lambda file: write_in_half(given.model, file, prepared, plan, ledger=given.ledger),
        lambda file: verify_file(file, given.model, prepared, plan),
    )
    work.tell(checked)
    return File(work.model_path)


STAGE = Stage(
    name="export",
    summary="Writes GGUF in fp16, without compression, and checks the file in llama.cpp.",
    cost="2 bytes a weight on disk",
    takes=Model,
    gives=File,
    work=_work,
    writes=lambda recipe: None,
)
