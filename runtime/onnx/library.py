"""ONNX Runtime with topkast's own kernels: the module ``topkast.onnx``.

ONNX Runtime is imported only when a session is made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topkast.runtime.errors import ConfigError
from topkast.runtime.extras import need
from topkast.runtime.kernels import native_library
from topkast.runtime.new_file import path_of

from .providers import Placed, check, noted, placed, refuse_missing

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["library_path", "placement", "session"]


def library_path() -> Path:
    """The shared library that holds the operators of the domain ``topkast``.

    ONNX Runtime 1.17 or later, in any language, loads the library with ``RegisterCustomOpsLibrary`` (in Python
    ``SessionOptions.register_custom_ops_library``), and then runs files of the format "custom" on sparse kernels. The
    environment variable ``TOPKAST_NATIVE`` is the path of another build of the library.

    Raises:
        ConfigError: topkast was installed without a C++ compiler, so the library does not exist.
    """
    found = native_library.path()
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
        path: the path of the file, or its bytes.
        sess_options: the options to use. The library is registered in these options, which is possible only once: do
            not use the same options for two sessions. None: ONNX Runtime's defaults.
        providers: as for ``InferenceSession``. None: the CPU. A CUDA provider runs files of the formats "block",
            "compact" and "dense". Nodes of "custom" run on the CPU beside any provider; a warning names these nodes and
            the amount of data that is copied for them. If "CPUExecutionProvider" is among several providers, the file
            runs there where another provider cannot be started, and a warning says so; :func:`placement` says what runs
            where.

    Raises:
        DeviceError: no requested provider can be started, and the CPU is not among them: there is no such device, or
            this package of ONNX Runtime was built without the provider.
        ConfigError: the library was not built, or ``path`` is no path.
        MissingPackageError: the packages of the extra ``topkast[onnx]`` are not installed.
        Other errors: ONNX Runtime's own errors, if ONNX Runtime or the library refuses the file.
    """
    need("onnx", "topkast.onnx.session")
    import onnxruntime

    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    options.register_custom_ops_library(str(library_path()))
    asked, file = (
        providers or ["CPUExecutionProvider"],
        path if isinstance(path, bytes) else os.fspath(path_of("path", path)),
    )
    refuse_missing(asked, onnxruntime.get_available_providers())
    noted(options)
    made = onnxruntime.InferenceSession(file, options, providers=asked)
    refuse_missing(asked, made.get_providers())
    check(asked, made, file)
    return made


def placement(session: onnxruntime.InferenceSession) -> dict[str, list[Placed]]:
    """Which nodes of a file run on which provider.

    Args:
        session: from :func:`session`.

    Returns:
        provider -> its nodes, as (name, operator, domain), after ONNX Runtime has optimised the graph. An operator of
        the domain ``topkast`` is a sparse product. A provider without nodes is there with an empty list.

    Raises:
        ConfigError: the session was made in another way, or ONNX Runtime is too old (1.24 can tell this).
    """
    return placed(session)
