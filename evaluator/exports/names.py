"""Name an SAE as Neuronpedia does: a source ``{layer}-{set}__{suffix}`` of a model.

The importer skips rows that are there, so two SAEs of one name would be lost in each other. So the suffix is the SAE's own id unless
another is given.
"""

import re
from dataclasses import dataclass

from scopemill.evaluator.exports.subject import Part, Subject
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import width_label

SHORT = {
    "resid_pre": "res-pre", "resid_mid": "res-mid", "resid_post": "res", "attn_z": "att", "attn_out": "attout", "mlp_in": "mlp-in",
    "mlp_out": "mlp",
}  # fmt: skip
NEURONPEDIA_USER = "clkht01d40000jv08hvalcvly"  # the default user of every Neuronpedia: other rows would point to no user


@dataclass(frozen=True)
class Names:
    """Hold what Neuronpedia asks of an SAE beyond its data.

    What is empty is derived from the SAE.
    """

    set: str = ""
    suffix: str | None = None
    model: str = ""
    release: str = ""
    description: str = ""
    creator: str = "Scopemill"
    creator_id: str = NEURONPEDIA_USER
    url: str = ""
    weights: str = ""  # where they are on Hugging Face: owner/repository/folder
    layers: int = 0  # of the language model

    def model_id(self, subject: Subject) -> str:
        """Return the model's id, in lower case as Neuronpedia wants it."""
        return self.model or subject.evidence.record.model.lower()

    def set_name(self, subject: Subject) -> str:
        """Return the set's name: one for SAEs that differ in layer and sparsity only."""
        return self.set or default_set(subject)

    def suffix_of(self, subject: Subject) -> str:
        """Return what tells SAEs of one set and layer apart."""
        return _plain(subject.folder.rstrip("/").rpartition("/")[2]) if self.suffix is None else self.suffix

    def source_id(self, subject: Subject, part: Part) -> str:
        """Return the name of one part's source."""
        suffix = self.suffix_of(subject)
        return f"{part.layer}-{self.set_name(subject)}" + (f"__{suffix}" if suffix else "")

    def release_name(self, subject: Subject) -> str:
        """Return the name of the release."""
        return self.release or f"{self.model_id(subject)}-{self.set_name(subject)}"


def default_set(subject: Subject) -> str:
    """Return a set's name from sites, architecture and width, such as ``res-jumprelu-16k``."""
    inputs, outputs = subject.finished.hooks(subject.folder)
    sites = dict.fromkeys(SHORT[hook.site] for hook in _ends(inputs, outputs))
    return "-".join([*sites, subject.evidence.record.architecture.replace("_", "-"), width_label(subject.parts[0].width)])


def _ends(inputs: tuple[Hook, ...], outputs: tuple[Hook, ...]) -> tuple[Hook, ...]:
    return (inputs[0], outputs[0])


def _plain(text: str) -> str:
    """Return a text that can stand in an address."""
    return re.sub(r"[^a-z0-9-]+", "_", text.lower()).strip("_")
