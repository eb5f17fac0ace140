"""Other training-free pruning methods, behind the interface of ERASE's own; the default settings are their papers'.

Those that choose before the decoder work on every image on its own, so that several images of a prompt keep equal
shares; those that rank by the text's attention rank all vision tokens of a prompt together.
"""

from erase.methods.base import Method
from erase.methods.baselines.cdpruner import CDPruner
from erase.methods.baselines.divprune import DivPrune
from erase.methods.baselines.downsample import Downsample
from erase.methods.baselines.fastv import FastV
from erase.methods.baselines.holov import HoloV
from erase.methods.baselines.per_image import Baseline
from erase.methods.baselines.pooling import Pooling
from erase.methods.baselines.prumerge import PruMerge
from erase.methods.baselines.pyramiddrop import PyramidDrop
from erase.methods.baselines.random import RandomTokens
from erase.methods.baselines.sparsevlm import SparseVLM
from erase.methods.baselines.visionzip import VisionZip
from erase.methods.baselines.vispruner import VisPruner
from erase.methods.baselines.vscan import VScan
from erase.policy import BaselinePolicy

METHODS: dict[str, type[Baseline]] = {
    cls.name: cls
    for cls in (
        CDPruner,
        DivPrune,
        Downsample,
        FastV,
        HoloV,
        Pooling,
        PruMerge,
        PyramidDrop,
        RandomTokens,
        SparseVLM,
        VisionZip,
        VisPruner,
        VScan,
    )
}


def baseline(policy: BaselinePolicy) -> Method:
    """The method that carries out the policy."""
    return METHODS[policy.method](policy)
