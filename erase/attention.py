"""Stage 2's attention score: how much the question looks at each vision token."""

import torch
from torch import Tensor


def vision_attention(
    query: Tensor,
    key: Tensor,
    query_rows: Tensor,
    vision_columns: Tensor,
    *,
    scale: float,
    chunk: int = 64,
) -> Tensor:
    """Attention that the queries pay to the vision columns: mean over heads, sum over queries.

    The softmax runs over all causal keys, in float32. Only queries x keys are ever built, `chunk` queries at a time,
    so at most heads x chunk x keys floats are alive.

    Args:
        query: [query heads, Q, head_dim], rotated.
        key: [key heads, K, head_dim], rotated; each serves query heads / key heads consecutive query heads.
        query_rows: int64 [Q], the row of each query among the K keys; it sees the keys up to and with that row.
        vision_columns: int64 [V], the rows of the vision tokens among the K keys.
        scale: factor on the dot products, head_dim ** -0.5.
        chunk: queries at a time.

    Returns:
        float32 [V].
    """
    heads, queries, dim = query.shape
    key_heads, keys, _ = key.shape
    group = heads // key_heads
    transposed = key.to(torch.float32).transpose(1, 2)  # (key heads, D, K)
    columns = torch.arange(keys, device=key.device)
    total = torch.zeros(vision_columns.numel(), dtype=torch.float32, device=key.device)
    with torch.autocast(key.device.type, enabled=False):  # it would run the dot products in half precision
        for start in range(0, queries, chunk):
            rows = query_rows[start : start + chunk]
            part = query[:, start : start + chunk].to(torch.float32).reshape(key_heads, group * rows.numel(), dim)
            scores = torch.bmm(part, transposed).mul_(scale).view(key_heads, group, rows.numel(), keys)
            scores.masked_fill_(columns > rows.unsqueeze(1), float("-inf"))
            weights = torch.softmax(scores, dim=-1).index_select(-1, vision_columns)
            total += weights.mean(dim=(0, 1)).sum(dim=0)
    return total
