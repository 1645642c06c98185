#!/usr/bin/env python3
"""Installs the pinned ONNX Runtime C library, which the server loads at run time.

The library is taken from the official Python wheel, which pip finds by name and checks
against the SHA-256 written below; nothing of Python is kept, and no Python is needed to run
the server. Without options it goes to `lib/` beside Cargo.toml; `--cuda` installs the GPU
build to `lib-cuda/` together with the CUDA 13 libraries it opens, and writes
`lib-cuda/env.sh`. What is already there in the right version is left alone.

Needs python3 (3.9 or newer) with pip, nothing else.
"""

import argparse
import os
import platform
import sys

CPU_VERSION = "1.32.0"
# The GPU build is published less often than the CPU one; the server accepts both.
CUDA_VERSION = "1.31.1"

# (distribution, version, machine) -> SHA-256 of its cp312 wheel. The library inside does not
# link Python, so one tag serves every interpreter.
WHEELS = {
    ("onnxruntime", CPU_VERSION, "x86_64"):
        "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
    ("onnxruntime", CPU_VERSION, "aarch64"):
        "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
    ("onnxruntime-gpu", CUDA_VERSION, "x86_64"):
        "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7",
}

# What libonnxruntime_providers_cuda.so links or opens at run time, as one CUDA 13.0 release:
# name, version, SHA-256 of the x86_64 wheel. nvJitLink is what cuFFT links.
CUDA_LIBRARIES = [
    ("nvidia-cuda-runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia-cublas", "13.1.0.3", "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    ("nvidia-cudnn-cu13", "9.15.1.9", "ebc9a647918df0d7298d67cfaf41579fd4c78ead9aba246f5ad9414d61b9ec4c"),
    ("nvidia-cufft", "12.0.0.61", "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    ("nvidia-curand", "10.4.0.35", "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    ("nvidia-cuda-nvrtc", "13.0.88", "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    ("nvidia-nvjitlink", "13.0.88", "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
]

MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class InstallError(Exception):
    """A failure with a one-line text that says what to do."""


def main():
    parser = argparse.ArgumentParser(
        description="Install the pinned ONNX Runtime C library from its PyPI wheel.",
        epilog="example: python3 tools/install_onnxruntime.py --cuda",
    )
    parser.add_argument("--cuda", action="store_true", help="the GPU build and the CUDA 13 libraries, into lib-cuda/")
    parser.add_argument("--dir", help="install into this folder instead")
    parser.add_argument("--machine", choices=sorted(set(MACHINES.values())), help="processor to install for (default: this one)")
    parser.add_argument("--library-only", action="store_true", help="with --cuda: leave the CUDA libraries out (a CUDA image has them)")
    arguments = parser.parse_args()

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folder = os.path.abspath(arguments.dir or os.path.join(root, "lib-cuda" if arguments.cuda else "lib"))
    try:
        install(folder, arguments.cuda, machine_of(arguments.machine), arguments.library_only)
    except InstallError as error:
        sys.exit(f"install_onnxruntime: {error}")
    except OSError as error:
        sys.exit(f"install_onnxruntime: cannot write {folder}: {error}")
    except KeyboardInterrupt:
        sys.exit("install_onnxruntime: interrupted; run it again to finish")


def machine_of(wanted):
    machine = wanted or MACHINES.get(platform.machine().lower())
    if sys.platform != "linux" and wanted is None:
        raise InstallError(f"only Linux is supported, not {sys.platform}; set ORT_DYLIB_PATH to a library of your own")
    if machine is None:
        raise InstallError(f"no library is pinned for {platform.machine()}; set ORT_DYLIB_PATH to a library of your own")
    return machine


def install(folder, cuda, machine, library_only):
    name, version = ("onnxruntime-gpu", CUDA_VERSION) if cuda else ("onnxruntime", CPU_VERSION)
    sha256 = WHEELS.get((name, version, machine))
    if sha256 is None:
        raise InstallError(f"{name} {version} is not published for {machine}; use the CPU build (without --cuda)")

    install_library(folder, name, version, machine, sha256)
    if cuda:
        if not library_only:
            install_cuda_libraries(folder)
        write_environment(folder)


def install_library(folder, name, version, machine, sha256):
    library = os.path.join(folder, f"libonnxruntime.so.{version}")
    stamp = os.path.join(folder, ".installed")
    mark = f"{name} {version} {machine} sha256:{sha256}\n"
    if read(stamp) == mark and os.path.isfile(library) and os.path.exists(os.path.join(folder, "libonnxruntime.so.1")):
        return

    # Imported here, so that the usual case (nothing to do) stays instant.
    import shutil
    import tempfile
    import zipfile

    os.makedirs(folder, exist_ok=True)
    # Beside the target, so that the finished files are moved by renaming: a library that
    # another process has loaded is never written into.
    work = tempfile.mkdtemp(prefix=".unpack-", dir=folder)
    try:
        print(f"installing {name} {version} ({machine}) into {folder}", file=sys.stderr)
        pip(
            "download", "--dest", work, "--python-version", "3.12", "--implementation", "cp",
            "--platform", f"manylinux_2_28_{machine}",
            requirements=[(name, version, sha256)], work=work,
        )
        wheels = [entry for entry in os.listdir(work) if entry.endswith(".whl")]
        if len(wheels) != 1:
            raise InstallError(f"pip left {len(wheels)} wheels for {name}=={version}, expected one")
        unpacked = []
        with zipfile.ZipFile(os.path.join(work, wheels[0])) as wheel:
            for member in wheel.namelist():
                if not member.startswith("onnxruntime/capi/libonnxruntime"):
                    continue
                base = os.path.basename(member)
                target = os.path.join(work, base)
                with wheel.open(member) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                os.chmod(target, 0o755)
                unpacked.append(base)
        if os.path.basename(library) not in unpacked:
            raise InstallError(f"{wheels[0]} holds no libonnxruntime.so.{version}")

        # Renamed into place, links too: a second install at the same time ends with the same files.
        links = [("libonnxruntime.so.1", os.path.basename(library)), ("libonnxruntime.so", "libonnxruntime.so.1")]
        for link, target in links:
            os.symlink(target, os.path.join(work, link))
        finished = unpacked + [link for link, _ in links]
        for base in finished:
            os.replace(os.path.join(work, base), os.path.join(folder, base))
        # Another version's providers would be loaded together with this library.
        for entry in os.listdir(folder):
            if entry.startswith("libonnxruntime") and entry not in finished:
                os.remove(os.path.join(folder, entry))
        write(stamp, mark)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def install_cuda_libraries(folder):
    target = os.path.join(folder, "python")
    stamp = os.path.join(target, ".installed")
    mark = "".join(f"{name} {version} sha256:{sha256}\n" for name, version, sha256 in CUDA_LIBRARIES)
    if read(stamp) == mark:
        return

    import shutil
    import tempfile

    print(f"installing the CUDA 13 libraries into {target} (about 2 GB)", file=sys.stderr)
    work = tempfile.mkdtemp(prefix=".unpack-", dir=folder)
    try:
        staged = os.path.join(work, "python")
        # The newest tags first: pip takes what fits, the hash decides what is accepted.
        platforms = [option for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux2014", "manylinux_2_17") for option in ("--platform", f"{tag}_x86_64")]
        pip(
            "install", "--target", staged, "--no-compile", "--python-version", "3.12", "--implementation", "cp", *platforms,
            requirements=CUDA_LIBRARIES, work=work,
        )
        write(os.path.join(staged, ".installed"), mark)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staged, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_environment(folder):
    """Writes `env.sh`, to be sourced before the server starts."""
    text = """# Sourced before the server starts: points it at the GPU build of ONNX Runtime and at the CUDA
# libraries beside it. Written by tools/install_onnxruntime.py.
_ortus_lib=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
export ORT_DYLIB_PATH="$_ortus_lib/libonnxruntime.so.1"
if [ -d "$_ortus_lib/python/nvidia" ]; then
    export LD_LIBRARY_PATH="$_ortus_lib:$(find "$_ortus_lib/python/nvidia" -type d -name lib -printf '%p:')${LD_LIBRARY_PATH:-}"
else
    export LD_LIBRARY_PATH="$_ortus_lib:${LD_LIBRARY_PATH:-}"
fi
unset _ortus_lib
"""
    path = os.path.join(folder, "env.sh")
    if read(path) != text:
        write(path, text)


def pip(command, *options, requirements, work):
    """Runs pip for exactly these (name, version, SHA-256), wheels only, without dependencies."""
    import importlib.util
    import subprocess

    if importlib.util.find_spec("pip") is None:
        raise InstallError("python3 has no pip; install it (Debian, Ubuntu: apt-get install python3-pip) or set ORT_DYLIB_PATH to a library of your own")
    listed = os.path.join(work, "requirements.txt")
    write(listed, "".join(f"{name}=={version} --hash=sha256:{sha256}\n" for name, version, sha256 in requirements))
    outcome = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
         "--only-binary=:all:", "--require-hashes", "--requirement", listed, *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A user's own pip settings (another target, a user install) must not bend this one;
        # index and proxy settings are kept.
        env={key: value for key, value in os.environ.items() if key not in ("PIP_TARGET", "PIP_USER", "PIP_PREFIX", "PYTHONPATH", "PIP_NO_BINARY")},
    )
    if outcome.returncode != 0:
        errors = [line.strip() for line in outcome.stdout.splitlines() if line.strip().lower().startswith("error")]
        if "DO NOT MATCH THE HASHES" in outcome.stdout:
            reason = "the downloaded file does not have the pinned SHA-256; it was not installed"
        else:
            reason = errors[-1] if errors else (outcome.stdout.strip().splitlines() or ["no message"])[-1]
        raise InstallError(f"pip could not fetch {', '.join(f'{name}=={version}' for name, version, _ in requirements)}: {reason}")


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path, text):
    """Writes a whole small file or nothing: a stamp must not be there half-written."""
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".part", path)


if __name__ == "__main__":
    main()
