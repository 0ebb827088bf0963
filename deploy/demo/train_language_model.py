"""Train the demo's language model, a small Gemma 2, on Python's standard library.

    python -m scopemill.deploy.demo.train_language_model OUT [--steps 2000]

OUT then holds a folder that loads like any model from the Hub: the tokenizer, the configuration, the weights in bfloat16, and the
measurements in `card.json`. Everything is seeded, and sums are made in a fixed order, so that a second run on the same machine gives the
same weights. A run that was interrupted resumes from its last checkpoint, the file beside OUT.

Shapes: B sequences in a batch, T positions in a sequence.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from scopemill.deploy.demo.standard_library import documents, is_test_suite

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>"]
PAD, EOS, BOS = range(len(SPECIAL_TOKENS))
IGNORED = -100  # the target that cross_entropy leaves out

VOCABULARY = 2048
CONTEXT = 256  # the longest T
SHORT_CONTEXT = 128  # T in the demo, in the measurement, and, because it is 1.5 times faster, in the first part of training
SHORT_SHARE = 0.8625  # of the steps
BATCH_TOKENS = 8192  # B * T

LEARNING_RATES = (0.02, 3e-3)  # Muon, for the matrices inside the blocks; AdamW, for the embedding and the norms
WARM_UP_STEPS = 50
DECAY_SHARE = 0.54  # of the steps, at the end, over which the learning rate falls linearly
FINAL_RATE = 5 / 23  # of the peak, where it ends

# Newlines take the indentation after them along; a word or a run of punctuation takes one space before it.
PIECES = r"\n+ *| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; decoding an encoded text returns the very same text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, eos, bos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        clean_up_tokenization_spaces=False,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[np.ndarray]:
    """Tokenize each text into an array of token ids, without special tokens."""
    encodings = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def pack(tokens: Iterable[np.ndarray], context: int) -> torch.Tensor:
    """Pack tokens into sequences [rows, context].

    A BOS opens each sequence and each document. A part-filled last row is dropped.
    """
    stream = np.concatenate([part for document in tokens for part in ([BOS], document)])
    rows = len(stream) // (context - 1)
    body = stream[: rows * (context - 1)].reshape(rows, context - 1)
    return torch.from_numpy(np.pad(body, ((0, 0), (1, 0)), constant_values=BOS))


def batches(tokens: list[np.ndarray], context: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield batches [B, T] without end.

    Each epoch shuffles the documents, which moves the cuts, and then the sequences.
    """
    random = np.random.default_rng(seed)
    size = BATCH_TOKENS // context
    while True:
        sequences = pack([tokens[i] for i in random.permutation(len(tokens))], context)
        order = random.permutation(len(sequences))
        for start in range(0, len(order) - size + 1, size):
            yield sequences[order[start : start + size]]


def all_batches(tokens: list[np.ndarray], steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield the batches of a whole run: short sequences first, then long ones."""
    short = int(SHORT_SHARE * steps)
    yield from islice(batches(tokens, SHORT_CONTEXT, seed), short)
    yield from islice(batches(tokens, CONTEXT, seed + 1), steps - short)


def build_model() -> Gemma2ForCausalLM:
    """Build the model with random float32 weights of variance 1/width.

    Gemma multiplies the embedding by sqrt(width).
    """
    width, head = 192, 32
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=head,
        query_pre_attn_scalar=head,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        sliding_window=CONTEXT,
        initializer_range=width**-0.5,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        attn_implementation="eager",  # type: ignore[call-arg]  # the only one that caps the attention scores
    )
    model: Gemma2ForCausalLM = Gemma2ForCausalLM(config).float()  # type: ignore[no-untyped-call]
    return model


def build_optimizers(model: Gemma2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Build Muon for the blocks' matrices and AdamW for the rest.

    The order is that of LEARNING_RATES.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding: torch.nn.Parameter = model.get_input_embeddings().weight  # type: ignore[assignment]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05),
        torch.optim.AdamW([embedding, *norms], betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rates at a step.

    The factor has a short rise, a plateau, and a linear fall to FINAL_RATE.
    """
    fallen = (step - (1 - DECAY_SHARE) * steps) / (DECAY_SHARE * steps)
    return min(1.0, (step + 1) / WARM_UP_STEPS, 1 - (1 - FINAL_RATE) * fallen)


def next_token_loss(model: Gemma2ForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy, in nats, of the tokens [B, T] after the first.

    Special tokens are left out.
    """
    targets = tokens[:, 1:].masked_fill(tokens[:, 1:] < len(SPECIAL_TOKENS), IGNORED)
    logits = model(tokens, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def train(model: Gemma2ForCausalLM, tokens: list[np.ndarray], steps: int, seed: int, checkpoint: Path) -> float:
    """Train in place, from the checkpoint if there is one.

    Returns the seconds of all attempts together.
    """
    loss_of = torch.compile(lambda batch: next_token_loss(model, batch), dynamic=False)
    optimizers = build_optimizers(model)
    first, seconds = load_checkpoint(checkpoint, model, optimizers)
    started = time.monotonic() - seconds
    for step, batch in enumerate(islice(all_batches(tokens, steps, seed), first, None), start=first):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, peak in zip(optimizers, LEARNING_RATES, strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.monotonic() - started
        if step % 20 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f} after {seconds:.0f} s", flush=True)
        if (step + 1) % 200 == 0:
            save_checkpoint(checkpoint, model, optimizers, step + 1, seconds)
    return seconds


def save_checkpoint(path: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
    """Write all that `train` needs to resume at `step`, whole or not at all."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step, "seconds": seconds}
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Load a checkpoint, if there is one.

    Returns the next step and the seconds spent so far, zeros without a checkpoint.
    """
    if not path.exists():
        return 0, 0.0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["seconds"]


@torch.no_grad()
def held_out_loss(folder: Path, held_out: list[np.ndarray]) -> float:
    """Measure the saved weights' loss in nats per token, in float32, on sequences of 128."""
    model = Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    for batch in torch.split(pack(held_out, SHORT_CONTEXT), 64):
        predicted = int((batch[:, 1:] >= len(SPECIAL_TOKENS)).sum())
        total += next_token_loss(model, batch).item() * predicted
        count += predicted
    return total / count


def unigram_loss(training: list[np.ndarray], held_out: list[np.ndarray]) -> float:
    """Return the loss, in nats per token, of a unigram model.

    The model knows only token frequencies in training (add-one smoothed).
    """
    counts = np.bincount(np.concatenate(training), minlength=VOCABULARY) + 1
    counts[: len(SPECIAL_TOKENS)] = 0  # never a target
    targets = np.concatenate(held_out)
    return float(math.log(counts.sum()) - np.log(counts[targets]).mean())


def main() -> None:
    """Train and measure; see the top of this file."""
    parser = argparse.ArgumentParser(description="Train the demo's language model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)

    library_texts = [text for _, text in documents(held_out=False)]
    test_texts = [text for _, text in documents(held_out=False, wanted=is_test_suite)]  # more Python where installed: training only
    tokenizer = train_tokenizer(library_texts)
    library, tests = tokenize(tokenizer, library_texts), tokenize(tokenizer, test_texts)
    held_out = tokenize(tokenizer, (text for _, text in documents(held_out=True)))

    model = build_model()
    checkpoint = options.out.with_name(options.out.name + ".checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    training = library + library + tests  # the library twice as often: it is what the loss is measured on
    seconds = train(model, training, options.steps, options.seed, checkpoint)
    tokenizer.save_pretrained(options.out)
    model.bfloat16().save_pretrained(options.out)

    loss, unigram = held_out_loss(options.out, held_out), unigram_loss(library, held_out)
    card = {
        "training_tokens_seen": options.steps * BATCH_TOKENS,
        "unique_training_tokens": sum(map(len, library + tests)),
        "vocabulary": VOCABULARY,
        "parameters": model.num_parameters(),
        "seconds": round(seconds),
        "held_out_loss": round(loss, 4),
        "held_out_unigram_loss": round(unigram, 4),
        "ratio": round(loss / unigram, 4),
        "python": platform.python_version(),
    }
    (options.out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    for file in options.out.iterdir():
        file.chmod(0o644)  # safetensors leaves its file to its owner alone
    checkpoint.unlink(missing_ok=True)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
