"""The baseline beside compression: the same grid by rounding alone, as much pruned by size; measured and taken back."""

from dataclasses import replace

from transformers import PreTrainedModel

from edgetune.export.checked import scratch_file
from edgetune.methods.catalogue import compression_method
from edgetune.recipe.preflight import compression_of
from edgetune.run.deploy import compress_to_file
from edgetune.run.stage import Model, Stage
from edgetune.run.work import Work


def _work(work: Work, given: Model) -> Model:
    chosen = compression_of(work.prepared.recipe)
    grids, plan = work.allotment(given.model, chosen).grids, work.planned()
    baseline = replace(compression_method("magnitude" if chosen.mask else "rtn"), grid=chosen.grid)
    if chosen.mask is not None and baseline.mask is not None:
        baseline = replace(baseline, mask=replace(baseline.mask, sparsity=chosen.mask.sparsity))
    if chosen.name == baseline.name:  # what is compressed is the baseline itself
        return given
    before = work.reference(given.model)
    weights = {name: weight.detach() for name, weight in given.model.named_parameters()}

    def rounded() -> PreTrainedModel:
        compress_to_file(given.model, baseline, file, work.prepared, plan, ledger=given.ledger, grids=grids)
        return given.model

    with scratch_file(work.model_path) as file:
        work.measured("rounded", rounded, lambda: file.stat().st_size, beside=before)
    for name, weight in given.model.named_parameters():
        weight.data = weights[name]  # compression gives parameters new storage and leaves the old as it was
    return given


STAGE = Stage(
    name="round",
    summary="Rounds to the same grid (prunes as much by size), measures it, and takes it back: what to compare with.",
    cost="the rounded weights beside the others; seconds",
    takes=Model,
    gives=Model,
    work=_work,
    before="compress",
)
