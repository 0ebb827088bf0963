"""The rows that every package trains on, in one order, and the rows that all are judged on.

The demo's: the carried language model's residual stream after layer 4, over Python's standard library. Held-out rows are of files
that neither the language model nor an SAE was trained on.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

HELD_OUT_ROWS = 16_384
CONTEXT = 128
SEQUENCES = 64  # per forward
LAYER = 4


def demo_rows(folder: Path, count: int) -> tuple[Path, Path]:
    """Write ``train.npy`` [count, d] and ``held_out.npy`` into a folder unless they are there; their paths."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scopemill.deploy.demo.run import MODEL
    from scopemill.deploy.demo.standard_library import documents, path_hash
    from scopemill.deploy.demo.train_language_model import tokenize

    paths = folder / "train.npy", folder / "held_out.npy"
    if all(path.exists() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    for path, wanted, held_out in zip(paths, (count, HELD_OUT_ROWS), (False, True), strict=True):
        texts = [text for _, text in sorted(documents(held_out), key=lambda document: path_hash(document[0]))]
        save(path, residual_rows(model, tokenize(tokenizer, texts), wanted))
    return paths


def residual_rows(model, tokens: Iterable[np.ndarray], wanted: int) -> np.ndarray:
    """Rows [wanted, d] after a layer, one for each token that is no BOS, shuffled."""
    import torch

    from scopemill.deploy.demo.train_language_model import BOS, pack

    taken: list[np.ndarray] = []
    model.model.layers[LAYER].register_forward_hook(lambda _, __, out: taken.append((out[0] if isinstance(out, tuple) else out).numpy()))
    parts: list[np.ndarray] = []
    with torch.no_grad():
        for batch in pack(tokens, CONTEXT).split(SEQUENCES):
            model.model(batch, use_cache=False)
            parts.append(taken.pop()[(batch != BOS).numpy()])
            if sum(map(len, parts)) >= wanted:
                break
    rows = np.concatenate(parts)[:wanted]
    if len(rows) < wanted:
        raise SystemExit(f"the corpus gives {len(rows)} rows, and {wanted} are wanted; give fewer rows")
    return rows[np.random.default_rng(0).permutation(wanted)]


def given_rows(given: Path, hook: str | None, folder: Path, most: int, batch: int) -> tuple[Path, Path]:
    """The same of rows of another model, in their order: the last are held out, and at most ``most``, whole batches, are trained on."""
    paths = folder / "train.npy", folder / "held_out.npy"
    if all(path.exists() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    x = read(given, hook)
    count = min(most, len(x) - HELD_OUT_ROWS) // batch * batch
    if count < 64 * batch:
        raise SystemExit(f"{given} holds {len(x)} rows; at least {64 * batch + HELD_OUT_ROWS} are wanted, to train on and to hold out")
    save(paths[0], x[:count][np.random.default_rng(0).permutation(count)])
    save(paths[1], x[-HELD_OUT_ROWS:])
    return paths


def read(given: Path, hook: str | None) -> np.ndarray:
    """Rows [n, d] of an .npy file, of a .safetensors file of one tensor, or of one hook of a harvested dataset's folder."""
    if given.is_dir():
        import zarr

        shards = [zarr.open_array(shard / str(hook), mode="r") for shard in sorted(given.glob("shards/*.zarr"))]
        return np.concatenate([float32(shard[:]) for shard in shards])
    if given.suffix == ".npy":
        return np.load(given, mmap_mode="r")
    from safetensors.numpy import load_file

    (x,) = load_file(given).values()
    return x


def float32(stored: np.ndarray) -> np.ndarray:
    """Shards keep bfloat16 as its bits: the upper half of a float32's."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored


def save(path: Path, rows: np.ndarray) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"partial-{path.name}")
    np.save(partial, rows.astype(np.float32))
    partial.replace(path)
