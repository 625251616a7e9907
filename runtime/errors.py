"""Every error topkast raises on purpose, under one base, each also the built-in kind a caller would expect."""


class TopkastError(Exception):
    """Base of all errors below."""


class ConfigError(TopkastError, ValueError):
    """An argument has a value that is not allowed."""


class ModelError(TopkastError, TypeError):
    """The model is of a kind, or in a state, that cannot be used here."""


class OperandError(TopkastError, ValueError):
    """A kernel was handed a tensor of a size, type or place that it cannot take."""


class OptimizerError(TopkastError, RuntimeError):
    """The optimizer keeps state that cannot follow a set through a refresh."""


class RefreshError(TopkastError, RuntimeError):
    """Sets could not be chosen in the background."""


class ReservoirError(TopkastError, OSError):
    """There is no room for the values outside B."""


class CheckpointError(TopkastError, RuntimeError):
    """A checkpoint does not belong to this model, config or optimizer."""


class ExportError(TopkastError, RuntimeError):
    """The model could not be written, or what was written does not agree with the model."""
