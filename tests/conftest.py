"""Before any test imports Triton: where no GPU runs its kernels, its interpreter does."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
