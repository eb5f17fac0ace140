"""Where numbers with fewer bits are faster."""

import torch


def reduced_precision(device: torch.device, enabled: bool = True) -> torch.autocast:
    """Within, matrix products take bfloat16 if that is faster: a CPU without AVX-512 needs fifteen times as long."""
    pays = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled and pays)
