"""EfficientVMamba networks: the authors' sizes exactly, any scan scheme, registered with timm."""

from models.checkpoints import CheckpointError, save_safetensors
from models.complexity import Complexity, complexity
from models.efficientvmamba import (
    BlockInfo,
    EfficientVMamba,
    WeightsInfo,
    get_scan,
    set_scan,
    with_scan,
)
from models.registry import (
    available_weights,
    create_model,
    list_models,
    register_with_timm,
)

__all__ = [
    "BlockInfo",
    "CheckpointError",
    "Complexity",
    "EfficientVMamba",
    "WeightsInfo",
    "available_weights",
    "complexity",
    "create_model",
    "get_scan",
    "list_models",
    "save_safetensors",
    "set_scan",
    "with_scan",
]

register_with_timm()
