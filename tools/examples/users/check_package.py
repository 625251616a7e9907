"""A packager: what has to be known of an installed topkast before it goes into a distribution.

    python check_package.py

The standard library and topkast's command line are enough. Every file of the record is there and unchanged, nothing is
compiled for one version of Python, the licence is there, and all that is missing is named.
"""

import base64
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    record = importlib.metadata.distribution("topkast")
    files = record.files or []
    for file in files:
        if file.hash is not None:
            digest = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, f"{file} was changed"
    names = [str(file) for file in files]
    libraries = [name for name in names if name.endswith((".so", ".dylib", ".dll"))]
    assert libraries == ["topkast/runtime/native/libtopkast.so"], libraries
    assert "topkast/py.typed" in names and any(name.endswith("licenses/LICENSE") for name in names)
    about = record.metadata
    assert about["License-Expression"] == "MIT" and about["Requires-Python"] == ">=3.11"
    for extra in about.get_all("Provides-Extra") or ():
        needs = [line.split(";")[0] for line in record.requires or [] if f'extra == "{extra}"' in line]
        print(f"[{extra}] {', '.join(needs)}")

    program = Path(sys.executable).with_name("topkast")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    assert version == f"topkast {record.version}\n", version
    found = subprocess.run([program, "doctor", "--json", "--no-speed"], capture_output=True, text=True)
    facts = json.loads(found.stdout)
    # Without a compiler or an extra, the exit status is 1 and the answer says how to get it.
    assert found.returncode == (1 if facts["missing"] else 0), found.stderr
    lean = "import sys, topkast; print(*{'onnx', 'scipy', 'torch._dynamo', 'triton'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", lean], capture_output=True, text=True, check=True).stdout == "\n"
    print(f"{len(names)} files as recorded; missing here: {len(facts['missing'])}", *facts["missing"], sep="\n")


if __name__ == "__main__":
    main()
