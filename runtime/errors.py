"""All errors that topkast raises on purpose. They share one base class, and each is also a suitable built-in error."""


class TopkastError(Exception):
    """The base class of all errors below."""


class ConfigError(TopkastError, ValueError):
    """An argument has a value that is not allowed."""


class MissingPackageError(TopkastError, ImportError):
    """A package is missing that only this function needs. The message names the extra that installs the package."""


class ModelError(TopkastError, TypeError):
    """The model's type or state does not allow this use."""


class OperandError(TopkastError, ValueError):
    """A kernel got a tensor whose size, type or memory it does not support."""


class OptimizerError(TopkastError, RuntimeError):
    """The optimizer keeps state that cannot move with a set in a refresh."""


class RefreshError(TopkastError, RuntimeError):
    """Sets could not be chosen in the background."""


class ReservoirError(TopkastError, OSError):
    """There is no room for the values outside B."""


class CheckpointError(TopkastError, RuntimeError):
    """A checkpoint does not belong to this model, to its options or to its optimizer."""


class DeviceError(TopkastError, RuntimeError):
    """The device cannot hold a sparse weight."""


class GraphError(TopkastError, RuntimeError):
    """Something that needs Python in every step would become a part of a CUDA graph, whose replays run none."""


class ExportError(TopkastError, RuntimeError):
    """The model could not be written, or the written file does not agree with the model."""
