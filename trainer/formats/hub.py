"""Push a finished SAE to a Hugging Face repository, with a model card."""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from scopemill.proto.errors import InputError, StorageError
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.formats.saelens import WORDS, saelens_files, word_of
from scopemill.trainer.sae.base import Sae

CARD = "README.md"
_FIGURES = {
    "l0": "L0 (active latents per token)",
    "fvu": "FVU (fraction of variance unexplained)",
    "delta_loss": "Delta loss (nats per token)",
    "recovered_zero": "Loss recovered (zero ablation)",
    "recovered_mean": "Loss recovered (mean ablation)",
    "dead_fraction": "Dead latents (share)",
    "dead_latents": "Dead latents",
    "tokens": "Training tokens",
}


def push_to_hub(sae: Sae, repo_id: str, folder: str = "", private: bool | None = None, token: str | None = None) -> str:
    """Push an SAE in SAELens' format and return the id that `load_sae` takes.

    The push is one commit. The repository is created if it is missing. An existing README.md is kept; otherwise a model card is
    written. InputError for an id that is none, StorageError if the hub refuses.
    """
    folder = folder.strip("/")
    place = f"{repo_id}/{folder}" if folder else repo_id
    finished = FinishedSae.of(sae)
    finished.check(place)
    files = {f"{folder}/{name}" if folder else name: data for name, data in saelens_files(place, finished).items()}
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if not api.file_exists(repo_id, CARD):
            files[CARD] = model_card(sae, place).encode()
        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        api.create_commit(repo_id, operations, commit_message=f"Add {sae!r}")
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is not a repository id such as owner/name: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise StorageError(f"The SAE could not be pushed to {repo_id}: {' '.join(str(error).split())}") from error
    return place


def model_card(sae: Sae, place: str) -> str:
    """Return a model card.

    It says what the SAE is, how to load it, and its quality as far as known.
    """
    cfg = sae.cfg or sae.describe()
    front: dict[str, Any] = {
        "library_name": "scopemill",
        "tags": ["sparse-autoencoder", "interpretability", "scopemill"] + ["saelens"] * (word_of(sae) in WORDS),
    }
    if cfg.model and "/" in cfg.model:
        front["base_model"] = cfg.model
    facts = {
        "Language model": cfg.model,
        "Hook": cfg.hook,
        "Architecture": cfg.architecture,
        "Activation": cfg.activation,
        "k": cfg.k,
        "Input width": cfg.d_in,
        "Latents": cfg.d_sae,
        "Output width": cfg.d_out if cfg.d_out != cfg.d_in else None,
        "Input normalization": cfg.normalization if cfg.normalization != "none" else None,
        "Context length": cfg.metadata.get("context_size"),
        "Training text": cfg.metadata.get("dataset_path"),
    }
    evaluation, training = cfg.metadata.get("evaluation"), cfg.metadata.get("training")
    measured = evaluation or training or {}
    figures = {text: _number(measured[name]) for name, text in _FIGURES.items() if isinstance(measured.get(name), int | float)}
    sections = [f"---\n{yaml.safe_dump(front, sort_keys=False)}---", f"# Sparse autoencoder{f' of {cfg.model}' if cfg.model else ''}"]
    sections += [_table("Property", facts), _loading(sae, place)]
    if figures:
        where = "held-out text" if evaluation else "the last logged training steps"
        sections += [f"## Quality\n\nMeasured on {where}.", _table("Figure", figures)]
    return "\n\n".join(sections) + "\n"


def _loading(sae: Sae, place: str) -> str:
    owner, name, *folder = place.split("/")
    text = f"""## Load

```python
import scopemill  # pip install scopemill

sae = scopemill.load_sae("{place}")
latents = sae.encode(activations)  # raw activations [..., {sae.d_in}]
reconstruction = sae.decode(latents)
```"""
    if word_of(sae) not in WORDS:
        return text
    path = " + " + repr("/" + "/".join(folder)) if folder else ""
    return f"""{text}

SAELens loads the same files:

```python
from huggingface_hub import snapshot_download
from sae_lens import SAE

sae = SAE.load_from_disk(snapshot_download("{owner}/{name}"){path})
```"""


def _table(title: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value not in (None, "")]
    return "\n".join([f"| {title} | |", "|---|---|", *lines])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
