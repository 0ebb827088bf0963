"""Parse and write Gemma Scope's paths: an SAE's model, hooks, width and L0.

    gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71           Gemma Scope 1: res, mlp, att or transcoders
    gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44
    gemma-scope-2-1b-pt/resid_post/layer_12_width_16k_l0_small       Gemma Scope 2: resid_post, mlp_out, attn_out or transcoder
    gemma-scope-2-1b-pt/transcoder_all/layer_3_width_16k_l0_big_affine

Gemma 2 and 3 are named by their size; any other model by its name.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from scopemill.proto.errors import SaeFormatError
from scopemill.proto.layout import width_label
from scopemill.trainer.formats.finished import FinishedSae

EMBEDDING = "hook_embed"
_KINDS_1 = {
    "res": ("hook_resid_post", "hook_resid_post"),
    "mlp": ("hook_mlp_out", "hook_mlp_out"),
    "att": ("attn.hook_z", "attn.hook_z"),
    # Gemma Scope 1's transcoders read the norm's output before its gain, Gemma Scope 2's the MLP's input after it.
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
_KINDS_2 = {
    "resid_post": ("hook_resid_post", "hook_resid_post"),
    "mlp_out": ("hook_mlp_out", "hook_mlp_out"),
    "attn_out": ("attn.hook_z", "attn.hook_z"),
    "transcoder": ("mlp.hook_in", "hook_mlp_out"),
}
# A repository's name ends at a slash, a revision (hf://owner/name@revision) or the hub's own cache's folders.
_REPOSITORY = r"(?:^|[/-])gemma-scope-{model}(?:@[^/]*)?/(?:.*/)?"
_PATH_1 = re.compile(
    _REPOSITORY.format(model=rf"(?P<model>[^/@]+)-(?P<kind>{'|'.join(_KINDS_1)})")
    + r"(?:layer_(?P<layer>\d+)|embedding)/width_(?P<width>\d+[km]?)/average_l0_(?P<l0>\d+)$"
)
_PATH_2 = re.compile(
    _REPOSITORY.format(model=r"2-(?P<model>[^/@]+)")
    + rf"(?P<kind>{'|'.join(_KINDS_2)})(?:_all)?/layer_(?P<layer>\d+)_width_(?P<width>\d+[km]?)_l0_(?P<l0>\w+?)(?P<affine>_affine)?$"
)


@dataclass(frozen=True)
class Origin:
    """Describe an SAE as a path does: its model, hooks and width."""

    model: str  # as Hugging Face has it, without the owner
    input: str
    output: str  # of a transcoder the target hook, else the same as input
    width: str  # "16k"
    affine: bool = False  # a transcoder with a linear map beside it


@dataclass(frozen=True)
class Generation:
    """Describe where the files of Gemma Scope 1 or 2 lie."""

    pattern: re.Pattern[str]
    kinds: dict[str, tuple[str, str]]
    path: str  # a template
    example: str
    gemma: str  # the family's name
    plain: tuple[str, str]  # the mark of a pretrained model in repository names, and in model names

    def parse(self, place: str) -> tuple[Origin, str]:
        """Return what a path describes, and its L0.

        The L0 is a number, or Gemma Scope 2's word. Raises SaeFormatError for another path.
        """
        found = self.pattern.search(_whole(place))
        if not found:
            raise SaeFormatError(f"{place} is not a Gemma Scope path; such a path ends like {self.example}.")
        sides = self.kinds[found["kind"]]
        hooks = [EMBEDDING if found["layer"] is None else f"blocks.{int(found['layer'])}.{side}" for side in sides]
        affine = bool(found.groupdict().get("affine"))
        return Origin(self._model(found["model"]), hooks[0], hooks[1], found["width"], affine), found["l0"]

    def path_of(self, finished: FinishedSae, l0: str) -> str:
        """Return the path of an SAE, from the repository's name on.

        Raises SaeFormatError if Gemma Scope has no such path.
        """
        origin = origin_of(finished)
        for kind, (one, other) in self.kinds.items():
            layer = re.fullmatch(r"blocks\.(\d+)\." + re.escape(one), origin.input)
            embedding = kind == "res" and origin.input == origin.output == EMBEDDING
            if embedding or (layer and origin.output == f"blocks.{layer[1]}.{other}"):
                where = f"layer_{layer[1]}" if layer else "embedding"
                affine = "_affine" if finished.sae.skip else ""
                return self.path.format(model=self._short(origin.model), kind=kind, where=where, width=origin.width, l0=l0, affine=affine)
        known = "; ".join(one if one == other else f"{one} to {other}" for one, other in self.kinds.values())
        raise SaeFormatError(f"Gemma Scope has no place for an SAE from {origin.input} to {origin.output}: it has {known}.")

    def _model(self, short: str) -> str:
        if re.fullmatch(r"\d+[bm]-(pt|it)", short):
            return f"{self.gemma}-{short}".replace(*self.plain)
        return short

    def _short(self, model: str) -> str:
        size = re.fullmatch(re.escape(self.gemma) + r"-(\d+[bm])(-pt|-it)?", model)
        return f"{size[1]}{size[2] or '-pt'}" if size else model


GENERATION_1 = Generation(
    _PATH_1, _KINDS_1, "gemma-scope-{model}-{kind}/{where}/width_{width}/average_l0_{l0}",
    "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "gemma-2", ("-pt", ""),
)  # fmt: skip
GENERATION_2 = Generation(
    _PATH_2, _KINDS_2, "gemma-scope-2-{model}/{kind}/{where}_width_{width}_l0_{l0}{affine}",
    "gemma-scope-2-1b-pt/resid_post/layer_12_width_16k_l0_small", "gemma-3", ("270m-pt", "270m"),
)  # fmt: skip


def origin_of(finished: FinishedSae) -> Origin:
    """Return what a path of this SAE has to describe.

    Raises SaeFormatError for several hooks, or an unknown hook or model.
    """
    if len(finished.inputs) != 1 or len(finished.outputs) != 1 or not finished.model:
        raise SaeFormatError(
            f"Gemma Scope's paths name a model and one hook, and this SAE has the model {finished.model!r} and "
            f"the hooks {', '.join(finished.inputs) or 'unknown'}."
        )
    return Origin(
        finished.model.rsplit("/", 1)[-1], finished.inputs[0], finished.outputs[0], width_label(finished.sae.width), bool(finished.sae.skip)
    )


def _whole(place: str) -> str:
    """Return the absolute path: a relative one may leave out folders that describe the SAE."""
    return place.rstrip("/") if "://" in place else str(Path(place).absolute())
