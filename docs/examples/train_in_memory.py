"""Train an SAE on a tensor in memory, save it and load it again: ``python train_in_memory.py FOLDER``."""

import sys

import torch

import scopemill


def activations(rows: int, d: int = 64, directions: int = 128) -> torch.Tensor:
    """Return rows that are sums of a few fixed directions: stand-ins for rows of a language model."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(directions, d, generator=generator), dim=1)
    active = torch.rand(rows, directions, generator=generator) < 4 / directions
    return 20 * (active * torch.rand(rows, directions, generator=generator)) @ truth + 1


def main(folder: str) -> None:
    x = activations(20_000)
    sae = scopemill.train_sae(x, "topk", width=256, sparsity=8, epochs=10, batch_size=512, learning_rate=5e-3)
    print(sae.cfg.metadata["training"])

    scopemill.save_sae(sae, folder)
    again = scopemill.load_sae(folder)
    fvu = (again(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    print(f"{again}: FVU {fvu:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
