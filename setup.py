"""The packages and the native library are found and built by rules here. All else is in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("runtime/native")
FOLDERS = sorted({path.parent for kind in ("cpp", "inl") for path in NATIVE.glob(f"*/*.{kind}")})
# These three take nearly all of the time, so they start first: ParallelCompile gives every core a file.
SLOW = ["isa_avx512.cpp", "isa_portable.cpp", "isa_avx2.cpp"]
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
# The library brings its own C++ runtime, whose names stay inside: it must load beside any other version of the runtime.
# Parts of the runtime that nothing calls are left out, because they would ask for a newer C library.
STATIC = ["-static-libstdc++", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-Wl,--strip-all"]


def sources() -> list[str]:
    """C++ files, slow ones first."""
    found = sorted(path for folder in FOLDERS for path in folder.glob("*.cpp"))
    return [str(path) for path in sorted(found, key=lambda path: path.name not in SLOW)]


class BuildLibrary(build_ext):
    """Builds a plain shared library. ctypes loads it, so one file serves every version of Python and bears no tag."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + SUFFIX

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return list(ext.export_symbols)  # without PyInit_*, which a module of Python would have

    def build_extension(self, ext: Extension) -> None:
        """Compile, unless the library in the tree is newer than all that it is made of."""
        built, made_of = NATIVE / f"libtopkast{SUFFIX}", [*ext.sources, *ext.depends, __file__]
        wanted = Path(self.get_ext_fullpath(ext.name))
        if built.exists() and all(Path(path).stat().st_mtime <= built.stat().st_mtime for path in made_of):
            wanted.parent.mkdir(parents=True, exist_ok=True)
            if wanted.resolve() != built.resolve():
                shutil.copy2(built, wanted)
        else:
            super().build_extension(ext)


class TagWheel(bdist_wheel):
    """Tags the wheel by platform only: no file in the wheel depends on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


# The CPU kernels, which ONNX Runtime loads too, for its operators are in the same library. Without a compiler the
# install goes on without the library, and the report says so. No -march: each file isa_*.cpp sets its own instruction
# set, chosen at run time. Products and sums may be fused, which Clang allows only if asked.
library = Extension(
    "topkast.runtime.native.libtopkast",
    sources=sources(),
    depends=sorted(str(path) for folder in FOLDERS for path in folder.iterdir() if path.suffix in (".h", ".inl")),
    include_dirs=[str(folder) for folder in FOLDERS],
    extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-g0", "-Wno-psabi"],
    extra_link_args=STATIC if sys.platform == "linux" else [],
    language="c++",
    optional=True,
)

# The root of the repository is the package: the tree in the editor is the tree that is imported. Tests and tools are
# not in the wheel.
rooms = find_packages(include=["compiler*", "passes*", "runtime*"])
ParallelCompile(default=0).install()
setup(
    packages=["topkast", *(f"topkast.{room}" for room in rooms)],
    ext_modules=[library],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TagWheel},
)
