"""The packages and the files of the native library are found by rules here. All else is in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, find_packages, setup

NATIVE = Path("runtime/native")
FOLDERS = sorted({path.parent for path in NATIVE.glob("*/*.cpp")})
# These three take nearly all of the time, so they start first: ParallelCompile gives every core a file.
SLOW = ["isa_avx512.cpp", "isa_portable.cpp", "isa_avx2.cpp"]


def sources() -> list[str]:
    """C++ files, slow ones first."""
    found = sorted(path for folder in FOLDERS for path in folder.glob("*.cpp"))
    return [str(path) for path in sorted(found, key=lambda path: path.name not in SLOW)]


# The CPU kernels, a plain shared library: loaded by ctypes, and by ONNX Runtime, whose operators are in it too. Without
# a compiler the install goes on without it, and the report says so. No -march: each file isa_*.cpp sets its own
# instruction set, chosen at run time.
library = Extension(
    "topkast.runtime.native.libtopkast",
    sources=sources(),
    depends=sorted(str(path) for folder in FOLDERS for path in folder.iterdir() if path.suffix in (".h", ".inl")),
    include_dirs=[str(folder) for folder in FOLDERS],
    extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-g0", "-Wno-psabi"],
    language="c++",
    optional=True,
)

# The root of the repository is the package: the tree in the editor is the tree that is imported. Tests and tools are
# not in the wheel.
rooms = find_packages(include=["compiler*", "passes*", "runtime*"])
ParallelCompile(default=0).install()
setup(packages=["topkast", *(f"topkast.{room}" for room in rooms)], ext_modules=[library])
