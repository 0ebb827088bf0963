"""Answer about latents: from the evidence in the bucket, without a language model."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from scopemill.deploy.studio.models.latents import Label, Labels, LatentPage, SearchHits
from scopemill.deploy.studio.service import TheStudio
from scopemill.deploy.studio.threads import in_thread

router = APIRouter(tags=["latents"])
Sae = Annotated[str, Query(description="The SAE's path in the bucket, such as saes/<model>/<hook>/width_16k/jumprelu/<id>.")]


@router.get("/latents")
async def list_latents(
    studio: TheStudio,
    sae: Sae,
    sort: Annotated[str, Query(description="latent, density, max, mean, decoder_norm, cluster or label_score.")] = "density",
    ascending: bool = False,
    label: Annotated[str, Query(description="Only latents whose label matches; * and ? are wildcards.")] = "*",
    dead: Annotated[bool, Query(description="Also latents that never fired.")] = False,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> LatentPage:
    """List an SAE's latents, sorted and in pages."""
    (await studio.watcher.fresh()).sae(sae)
    rows = await in_thread(studio.latents.listed, sae, sort, label, ascending, dead)
    return LatentPage(sae=sae, items=rows[offset : offset + limit], total=len(rows), offset=offset)


@router.get("/latents/{latent}")
async def show_latent(latent: int, studio: TheStudio, sae: Sae) -> dict[str, Any]:
    """Show everything that evidence has of a latent: contexts, statistics, output tokens and neighbours."""
    (await studio.watcher.fresh()).sae(sae)
    return await in_thread(studio.latents.facts, sae, latent)


@router.get("/search")
async def search(
    studio: TheStudio,
    sae: Sae,
    text: Annotated[str, Query(min_length=1, description="A word; with words=false a text that the language model reads.")],
    words: Annotated[bool, Query(description="Look in labels, promoted tokens and contexts; no model runs.")] = True,
    model: Annotated[str | None, Query(description="Absent: the language model of its sweep, or of its evidence.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> SearchHits:
    """Find the latents whose evidence holds a word, or that fire on a text."""
    trainings = await studio.watcher.fresh()
    trainings.sae(sae)
    if words:
        hits = await in_thread(studio.latents.with_word, sae, text)
    else:
        place, named = studio.bucket.place(sae), model or trainings.language_model(sae)
        hits = await studio.inference.call("firing", sae=place, text=text, model=named)
    return SearchHits(sae=sae, text=text, words=words, items=hits[:limit])


@router.get("/labels")
async def list_labels(studio: TheStudio, sae: Sae) -> Labels:
    """List all labels of an SAE's latents, with their scores."""
    (await studio.watcher.fresh()).sae(sae)
    found = await in_thread(studio.latents.labels, sae)
    return Labels(sae=sae, items=[Label(latent=latent, label=label, score=score) for latent, (label, score) in sorted(found.items())])
