"""Reading and validation of images, annotations and ground truth.

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from detcam.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from detcam.data.annotations import Annotations as Annotations
    from detcam.data.exif import ImageSize as ImageSize
    from detcam.data.exif import image_size as image_size
    from detcam.data.ground_truth import GroundTruth as GroundTruth
    from detcam.data.images import expand_paths as expand_paths
    from detcam.data.images import load_image as load_image
    from detcam.data.images import load_images as load_images
    from detcam.data.images import to_uint8 as to_uint8
    from detcam.data.issues import DataIssue as DataIssue
    from detcam.data.issues import DataIssues as DataIssues
    from detcam.data.issues import DataWarning as DataWarning
    from detcam.data.opening import UnknownFormatError as UnknownFormatError
    from detcam.data.opening import max_pixels as max_pixels

_MODULES = {
    "Annotations": "detcam.data.annotations",
    "DataIssue": "detcam.data.issues",
    "DataIssues": "detcam.data.issues",
    "DataWarning": "detcam.data.issues",
    "GroundTruth": "detcam.data.ground_truth",
    "ImageSize": "detcam.data.exif",
    "UnknownFormatError": "detcam.data.opening",
    "expand_paths": "detcam.data.images",
    "image_size": "detcam.data.exif",
    "load_image": "detcam.data.images",
    "load_images": "detcam.data.images",
    "max_pixels": "detcam.data.opening",
    "to_uint8": "detcam.data.images",
}
"""The module that defines each public name."""

__getattr__, __dir__ = lazy_attributes(__name__, _MODULES)

__all__ = sorted(_MODULES)  # type checkers read the block above
