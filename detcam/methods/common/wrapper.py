"""Base class of methods that refine the maps of another method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detcam.cam import BaseCAM


class WrapperCAM(BaseCAM, abstract=True):
    """A method around a base method at the same target layers.

    Attributes:
        base: the base method.
    """

    base: BaseCAM

    def wrap(self, base_method: type[BaseCAM], options: Mapping[str, Any]) -> None:
        """Create the base method, and explain targets as it does.

        Args:
            base_method: class of the base method.
            options: arguments of the base method beside the adapter.
        """
        self.base = base_method(self.adapter, **options)
        self.uses_gradients = self.base.uses_gradients
        self.class_discriminative = self.base.class_discriminative  # type: ignore[misc]
        self.explains_volumes = self.explains_volumes and self.base.explains_volumes  # type: ignore[misc]
