"""Load an SAE and look at it: ``python load_and_look.py PLACE``.

PLACE is a folder, a URL such as s3://bucket/saes/..., or a Hugging Face id such as
google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71.
"""

import sys

import torch

import scopemill


def main(place: str) -> None:
    sae = scopemill.load_sae(place)
    print(sae)
    print(f"language model {sae.model}, hook {sae.hook}, {sae.d_sae} latents")

    # Stand-ins: take real rows of this hook from your language model.
    x = 10 * torch.randn(256, sae.d_in)
    latents = sae.encode(x)  # [rows, latents]
    reconstruction = sae(x)
    fvu = (reconstruction - x).square().sum() / (x - x.mean(0)).square().sum()
    print(f"L0 {(latents > 0).sum(1).float().mean():.1f}, FVU {fvu:.2f}")

    strengths, top = latents[0].topk(5)
    print("strongest latents of the first row:", dict(zip(top.tolist(), strengths.tolist(), strict=True)))

    directions = torch.nn.functional.normalize(sae.W_dec, dim=1)
    nearest = (directions @ directions[top[0]]).topk(5).indices
    print(f"latents whose decoder rows are nearest to latent {top[0]}: {nearest.tolist()}")


if __name__ == "__main__":
    main(sys.argv[1])
