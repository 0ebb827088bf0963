"""Name torch's dtypes as configurations and manifests do."""

import torch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
