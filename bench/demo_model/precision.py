"""Where numbers with fewer bits are faster."""

import torch


def fast_dtype(device: torch.device) -> torch.dtype:
    """What matrix products take: bfloat16, unless that is slower. A CPU without AVX-512 needs fifteen times as long."""
    pays = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.bfloat16 if pays else torch.float32


def reduced_precision(device: torch.device, enabled: bool = True) -> torch.autocast:
    """Within, matrix products take bfloat16 where that is faster."""
    pays = fast_dtype(device) == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled and pays)
