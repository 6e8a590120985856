"""Loading of models by name or from checkpoints.

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from detcam.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from detcam.models.builders import BuiltModel as BuiltModel
    from detcam.models.builders import torchvision_names as torchvision_names
    from detcam.models.checkpoints import infer_num_classes as infer_num_classes
    from detcam.models.checkpoints import load_weights as load_weights
    from detcam.models.checkpoints import read_checkpoint as read_checkpoint
    from detcam.models.checkpoints import state_dict_of as state_dict_of
    from detcam.models.files import read_names as read_names
    from detcam.models.load import load_model as load_model
    from detcam.models.timm import create_timm_model as create_timm_model
    from detcam.models.transformers import create_transformers_model as create_transformers_model

_MODULES = {
    "BuiltModel": "detcam.models.builders",
    "create_timm_model": "detcam.models.timm",
    "create_transformers_model": "detcam.models.transformers",
    "infer_num_classes": "detcam.models.checkpoints",
    "load_model": "detcam.models.load",
    "load_weights": "detcam.models.checkpoints",
    "read_checkpoint": "detcam.models.checkpoints",
    "read_names": "detcam.models.files",
    "state_dict_of": "detcam.models.checkpoints",
    "torchvision_names": "detcam.models.builders",
}
"""The module that defines each public name."""

__getattr__, __dir__ = lazy_attributes(__name__, _MODULES)

__all__ = sorted(_MODULES)  # type checkers read the block above
