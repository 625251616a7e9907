"""Packages that only a part of topkast needs; an extra of the installation brings them."""

from __future__ import annotations

from importlib.util import find_spec

from topkast.runtime.errors import MissingPackageError

# The same packages, by the names that Python imports, as in pyproject.toml.
EXTRAS = {
    "onnx": ("onnx", "onnx_ir", "onnxruntime", "onnxscript"),
    "statistics": ("scipy",),
}


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def need(extra: str, caller: str) -> None:
    """Check that the packages of an extra are installed.

    Args:
        extra: a key of :data:`EXTRAS`.
        caller: the public name that needs the packages, for the message.

    Raises:
        MissingPackageError: a package is not installed. The message says how to install the extra.
    """
    absent = missing(extra)
    if absent:
        raise MissingPackageError(
            f"{caller} needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed: "
            f"pip install 'topkast[{extra}]'"
        )
