#!/usr/bin/env python3
"""Writes what the program is made of, as a CycloneDX document: `sbom.py CARGO_CYCLONEDX OUTPUT`.

The crates are listed by cargo-cyclonedx, as Cargo.lock has them for the target that is built; what builds and
tests need is left out. To them comes ONNX Runtime, which the program loads when it runs: the wheels that
install_onnxruntime.py pins, with their SHA-256. Fails where a direct dependency of Cargo.toml is missing from the
document, since a list that is not whole is worse than none. Standard library only; needs no network.
"""

import json
import pathlib
import subprocess
import sys

import install_onnxruntime as onnxruntime

ROOT = pathlib.Path(__file__).resolve().parent.parent
# cargo-cyclonedx writes beside Cargo.toml.
NAME = "ortus.sbom-in-the-making"


def main():
    tool, output = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    written = ROOT / f"{NAME}.json"
    try:
        subprocess.run(
            [tool, "cyclonedx", "--format", "json", "--spec-version", "1.5", "--override-filename", NAME, "--no-build-deps"],
            cwd=ROOT, check=True,
        )
        # References to the program itself name the folder that it was built in.
        document = json.loads(written.read_text().replace(f"path+file://{ROOT}", "path+file:///ortus"))
    finally:
        written.unlink(missing_ok=True)
    document["components"] += [library(*wheel, sha256) for wheel, sha256 in onnxruntime.WHEELS.items()]
    document["dependencies"] += [{"ref": component["bom-ref"]} for component in document["components"] if component["type"] == "library" and component["purl"].startswith("pkg:pypi/")]
    problem = problem_of(document)
    if problem:
        sys.exit(f"sbom: {problem}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{output.name}: {len(document['components'])} components, {len(direct_dependencies())} of them direct dependencies, and ONNX Runtime")


def library(name, version, machine, sha256):
    """ONNX Runtime as it is loaded: the library inside of this wheel."""
    purl = f"pkg:pypi/{name}@{version}?platform=manylinux_2_28_{machine}"
    return {
        "type": "library", "bom-ref": purl, "name": name, "version": version, "scope": "required", "purl": purl,
        "description": "ONNX Runtime's library, loaded at run time",
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "licenses": [{"expression": "MIT"}],
    }


def direct_dependencies():
    """Names of the crates that the program itself names, without those for builds and tests."""
    text = subprocess.run(
        ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    (package,) = [package for package in json.loads(text)["packages"] if package["name"] == "ortus"]
    return {dependency["name"] for dependency in package["dependencies"] if dependency["kind"] is None}


def problem_of(document):
    """What is missing from a document."""
    names = {component["name"] for component in document["components"]}
    missing = sorted(direct_dependencies() - names)
    if missing:
        return f"direct dependencies that are not in the document: {', '.join(missing)}"
    bare = sorted(component["name"] for component in document["components"] if not component.get("version") or not component.get("purl"))
    if bare:
        return f"components without a version or an address: {', '.join(bare[:10])}"
    unhashed = [component["name"] for component in document["components"] if component["purl"].startswith("pkg:pypi/") and not component["hashes"]]
    if unhashed or "onnxruntime" not in names:
        return "ONNX Runtime is not in the document, or without its checksum"
    return None


if __name__ == "__main__":
    main()
