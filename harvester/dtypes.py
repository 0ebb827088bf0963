"""Torch's dtypes by the names that configurations and manifests use."""

import torch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
