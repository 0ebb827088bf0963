"""Steer a language model: one process infers, started at first use."""

from http import HTTPStatus
from shlex import quote
from typing import Any

from fastapi import APIRouter

from scopemill.deploy.studio.helper import Note
from scopemill.deploy.studio.models.jobs import Job, SteerRequest
from scopemill.deploy.studio.service import TheStudio

router = APIRouter(tags=["latents"])


@router.post("/steer", status_code=HTTPStatus.ACCEPTED)
async def steer(given: SteerRequest, studio: TheStudio) -> Job:
    """Continue a prompt unsteered, steered and randomly pushed.

    Text comes on the channel ``job/<id>`` as it is written. The job result has a column for each configuration, with its texts, effect,
    output scores and doses.
    """
    trainings = await studio.watcher.fresh()
    paths = [edit.get("sae") for edits in given.configurations.values() for edit in edits]
    for path in paths:
        trainings.sae(str(path))
    placed = {
        name: [edit | {"sae": studio.bucket.place(str(edit["sae"]))} for edit in edits] for name, edits in given.configurations.items()
    }
    fields = given.model_dump(exclude={"model", "configurations"}) | {"configurations": placed}
    model = given.model or (trainings.language_model(str(paths[0])) if paths else None)

    async def work(note: Note) -> dict[str, Any]:
        return {"columns": await studio.inference.call("steer", note, model=model, request=fields)}

    return studio.jobs.start("steer", _command(fields, model), work)


@router.get("/jobs/{id}")
async def show_job(id: str, studio: TheStudio) -> Job:
    """Show an import or a steering, with its result once it is completed."""
    return studio.jobs.get(id)


def _command(fields: dict[str, Any], model: str | None) -> str:
    """Return the command that does the same, for one edit; for more, with a file of the configurations."""
    sampling = fields["sampling"]
    options = [f"--{name} {sampling[name]}" for name in ("length", "temperature", "seed") if name in sampling]
    options += [f"--model {quote(model)}"] if model else []
    options += ["--doses"] if fields["doses"] else []
    options += [f"--samples {fields['samples']}"] if fields["samples"] > 1 else []
    edits = [edit for edits in fields["configurations"].values() for edit in edits]
    if len(edits) == 1:
        (edit,) = edits
        given = [f"--{name} {edit[name]}" for name in ("latent", "op", "amount", "unit", "where") if edit.get(name) is not None]
        options = [quote(edit["sae"]), *given, *options]
    else:
        options = ["--file EDITS.json", *options]
    return " ".join(["scopemill steer", *options, "--prompt", quote(fields["prompt"])])
