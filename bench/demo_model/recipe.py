"""What is trained, on what, and for how long: from nothing on a data-centre GPU, or on from a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Phase:
    """A stretch of the curriculum, up to `until` (a share of the whole training).

    `tokens` are the fewest and the most vision tokens of an image, `crowd` how full images are at most. `cells_only`
    trains the vision encoder alone, to say what lies in each cell: questions cannot be learned before. `frozen` leaves
    the encoder as it is, while the head that says what lies in each cell learns to read it: a third of the work is
    saved, and the few questions of a small batch cannot undo what the encoder has learned. `shown` is how often an
    image is used, where drawing anew would keep the trainer waiting.
    """

    until: float
    tokens: tuple[int, int]
    crowd: float
    cells_only: bool = False
    frozen: bool = False
    shown: int = 1


SECTIONS = (0, 1, 1) * 8
"""How the 16 frequencies of a rotary position are shared out over time, row and column: in turns. In Qwen2.5-VL's three
blocks, a column would turn the last six of such a narrow head by 0.003 radians at most: the decoder saw no columns."""


class Head(NamedTuple):
    """An attention head of the decoder, both numbers from 0."""

    layer: int
    head: int


@dataclass(frozen=True)
class Recipe:
    """A model's shape and its training.

    `batch_tokens` bounds vision tokens plus text tokens of a batch; `rate` is the peak learning rate of Muon, which
    moves the matrices (AdamW moves the rest at half of it), held until the last `cooldown` share of the training and
    then brought down to zero; the encoder's is `encoder_scale` times as high. Images of a family come once more for
    each time that it stands in `harder`.

    `looks` names the heads that are taught where to look, by kind (looks.py).
    """

    vision_width: int
    vision_depth: int
    vision_mlp: int
    full_attention: tuple[int, ...]
    width: int
    depth: int
    mlp: int
    heads: int
    key_value_heads: int
    phases: tuple[Phase, ...]
    batch_tokens: int
    questions: int
    rate: float = 3e-3
    encoder_scale: float = 1.0
    weight_decay: float = 0.02
    warmup_steps: int = 100
    cooldown: float = 0.4
    harder: tuple[str, ...] = ()
    looks: Mapping[str, tuple[Head, ...]] = field(default_factory=dict)

    def phase(self, share: float) -> Phase:
        """The phase at a share of the training from 0 to 1."""
        return next(phase for phase in self.phases if share <= phase.until)

    def config(self, vocabulary: int, special: dict[str, int]) -> dict[str, Any]:
        """Keyword arguments of `Qwen2_5_VLConfig`; `special` holds the ids of Qwen's special tokens."""
        return {
            "text_config": {
                "hidden_size": self.width,
                "intermediate_size": self.mlp,
                "num_hidden_layers": self.depth,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.key_value_heads,
                "vocab_size": vocabulary,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
                "bos_token_id": None,
                "eos_token_id": special["<|im_end|>"],
                "pad_token_id": special["<|endoftext|>"],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(SECTIONS)},
            },
            "vision_config": {
                "depth": self.vision_depth,
                "hidden_size": self.vision_width,
                "intermediate_size": self.vision_mlp,
                "num_heads": self.vision_width // 32,
                "out_hidden_size": self.width,
                "fullatt_block_indexes": list(self.full_attention),
                "tokens_per_second": 4,
            },
            "tie_word_embeddings": True,
            "image_token_id": special["<|image_pad|>"],
            "video_token_id": special["<|video_pad|>"],
            "vision_start_token_id": special["<|vision_start|>"],
            "vision_end_token_id": special["<|vision_end|>"],
        }


_FROM_NOTHING = Recipe(
    vision_width=192,
    vision_depth=8,
    vision_mlp=576,
    full_attention=(3, 7),
    width=256,
    depth=16,
    mlp=704,
    heads=8,
    key_value_heads=2,
    phases=(
        Phase(0.10, (42, 144), 1.0, cells_only=True, shown=5),
        Phase(0.22, (42, 100), 0.6, shown=3),
        Phase(0.50, (64, 400), 1.0, shown=2),
        Phase(1.00, (64, 2304), 1.0, shown=2),
    ),
    batch_tokens=32_768,
    questions=8,
    looks={
        "beside": (Head(1, 0), Head(2, 1)),
        "above": (Head(1, 4), Head(2, 5)),
        "asking": (Head(3, 0), Head(4, 7)),
        "counting": (Head(3, 1), Head(4, 6)),
        "finding": (Head(5, 3), Head(6, 7)),
        "recalling": (Head(6, 1), Head(7, 3)),
        "answering": (Head(8, 5), Head(9, 7)),
    },
)

_MORE = replace(
    _FROM_NOTHING,
    phases=(Phase(0.30, (42, 200), 1.0, frozen=True), Phase(1.00, (64, 2304), 1.0, frozen=True)),
    rate=2e-3,
    cooldown=0.7,
    harder=("documents", "charts", "infographics"),
)

RECIPES = {
    "gpu": _FROM_NOTHING,
    "more": _MORE,
    "more-cpu": replace(
        _MORE,
        phases=(
            Phase(0.25, (42, 100), 0.8, frozen=True),
            Phase(0.65, (42, 256), 1.0),
            Phase(1.00, (42, 1300), 1.0),
        ),
        batch_tokens=4_000,
        rate=1.5e-3,
        encoder_scale=0.5,
        warmup_steps=40,
        cooldown=0.6,
        harder=(*["documents", "charts", "general", "ocr"] * 2, "scene_text"),
    ),
}
