"""How much memory of a GPU this process has taken at most."""

from __future__ import annotations

import sys
from typing import Any


def peak_device_bytes() -> int | None:
    """Return the most that torch held on the GPU; None where no engine of this process has used one."""
    if "torch" not in sys.modules:
        return None
    import torch

    cuda: Any = torch.cuda
    return int(cuda.max_memory_allocated()) if cuda.is_initialized() else None
