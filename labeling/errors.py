"""The one error of this package that people read."""

from registry.services import RegistryError


class LabelingError(RegistryError):
    """What was asked for cannot be done: one sentence with a number and the next step."""
