"""ONNX Runtime with topkast's own kernels: the module ``topkast.onnx``.

ONNX Runtime is imported only when a session is made.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from . import metadata

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["library_path", "session"]


def find_library() -> Path | None:
    """The library's path, None where it was not built."""
    other = os.environ.get("TOPKAST_ORT")
    native = Path(__file__).parents[1] / "native"
    found = [Path(other)] if other else sorted(native.glob("libtopkast_ort*.so"))
    return found[0].resolve() if found else None


def library_path() -> Path:
    """The shared library that holds the operators of the domain ``topkast``.

    Any ONNX Runtime from 1.17 on, in any language, loads it by ``RegisterCustomOpsLibrary`` (in Python
    ``SessionOptions.register_custom_ops_library``), and then runs files of the format "custom" on sparse kernels. The
    environment variable ``TOPKAST_ORT`` names another build of it.

    Raises:
        ConfigError: topkast was installed without a C++ compiler, so there is none.
    """
    found = find_library()
    if found is None:
        raise ConfigError("the ONNX Runtime library was not built: install topkast where there is a C++ compiler")
    return found


def session(
    path: str | os.PathLike[str] | bytes,
    *,
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
) -> onnxruntime.InferenceSession:
    """An ``onnxruntime.InferenceSession`` with topkast's kernels registered.

    Args:
        path: of the file, or its bytes.
        sess_options: options to use; the library is registered in them, which may happen once: do not use the same
            ones for two sessions. None: ONNX Runtime's defaults.
        providers: as ``InferenceSession`` takes them. None: the CPU. Our operators run on the CPU under any of them,
            and what they read and give is copied to and from the other device: a warning says so.

    Raises:
        ConfigError: the library was not built.
        Whatever ONNX Runtime raises: of a file that it or the library refuses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    options.register_custom_ops_library(str(library_path()))
    made = onnxruntime.InferenceSession(
        path if isinstance(path, bytes) else os.fspath(path), options, providers=providers or ["CPUExecutionProvider"]
    )
    others = [name for name in made.get_providers() if name != "CPUExecutionProvider"]
    sites = metadata.sites(made.get_modelmeta().custom_metadata_map)
    count = sum(site.format == "custom" for site in sites)
    if others and count:
        warnings.warn(
            f"{count} products run topkast's kernels on the CPU, not on {others[0]}: their activations are copied "
            'there and back in each run. Export with format="block" or "compact" for that provider',
            stacklevel=2,
        )
    return made
