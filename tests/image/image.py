#!/usr/bin/env python3
"""Builds the image and holds a container of it to what deploy/ promises: few rights, no tools, and it serves.

`image.py ORTUS LIBRARY [--whole] [--keep]`

The Dockerfile is built as it stands, but for two stages: the binary ORTUS and ONNX Runtime's folder LIBRARY are taken from
here in place of being compiled and fetched again (`--whole` leaves nothing out). A base image that no registry gives is made of
the same Debian packages by mmdebstrap. Then a container of it runs with a read-only root file system, no capabilities, no new
privileges, the engine's own seccomp filter and 512 MiB, and is asked from outside for what a user would: a prediction, the dashboard,
its health, a key, a model that is uploaded, and all that again after a restart on the same volume.

The engine is podman or docker, whichever is there (`apt-get install podman runc netavark iptables mmdebstrap`), by root or
a user who may. Containers, volumes and images of its own making are removed in the end (`--keep` leaves the image).
Everything is on loopback. Standard library only. Each finding is a line that begins with `ok` or `FAILED`; exits with 1 where one failed.
`make image-check` runs it.
"""

import argparse
import contextlib
import http.client
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NAME = "ortus-image-check"
IMAGE = f"localhost/{NAME}:latest"
UID = "10001"
MEMORY_MB, FILES, PROCESSES = 512, 8192, 512
START_SECONDS = 60
# shutdown_grace_ms, and what comes after it.
STOP_SECONDS = 25
DIGITS = ROOT / "models" / "digits"
# What nobody who got into the container should find there.
TOOLS = {"sh", "bash", "dash", "busybox", "apt", "apt-get", "dpkg", "python3", "perl", "curl", "wget", "nc", "gcc", "su", "mount"}
# What the base images hold, for where they cannot be had: the same packages, without their installation's scripts.
DISTROLESS = ["base-files", "ca-certificates", "libc6", "libgcc-s1", "libssl3", "libstdc++6", "netbase", "tzdata"]

failed = False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ortus", type=pathlib.Path, help="the server's binary")
    parser.add_argument("library", type=pathlib.Path, help="the folder of ONNX Runtime")
    parser.add_argument("--whole", action="store_true", help="compile the server and fetch ONNX Runtime as the Dockerfile does")
    parser.add_argument("--keep", action="store_true", help="leave the image")
    arguments = parser.parse_args()
    engine = Engine()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if not arguments.keep:
            stack.callback(engine.tidy, "rmi", "--force", IMAGE)
        with step("the image is built"):
            build(engine, arguments, pathlib.Path(folder), stack)
        if reason := engine.runs_nothing():
            print(f"SKIPPED: no container runs here, whatever is in it: {reason}", flush=True)
            sys.exit(1 if failed else 0)
        stack.callback(engine.tidy, "volume", "rm", "--force", NAME)
        # F94
        with step("a container has no rights and no tools beyond what it needs"), Container(engine) as container:
            few_rights(engine, container)
            no_tools(engine, container, pathlib.Path(folder))
        with step("a container serves on a read-only root file system"), Container(engine) as container:
            serves(container)
            key = first_key(container)
            uploads(container, key)
            pulls(container, key)
            stops(container)
        with step("what was uploaded is there after a restart"), Container(engine) as container:
            digit_is_read(container, "uploaded", key)
    sys.exit(1 if failed else 0)


@contextlib.contextmanager
def step(name):
    started = time.monotonic()
    print(f"== {name}", flush=True)
    yield
    print(f"     {time.monotonic() - started:.0f} s", flush=True)


def finding(holds, text):
    global failed
    failed = failed or not holds
    print(f"{'ok    ' if holds else 'FAILED'} {text}", flush=True)


# --- the engine ---------------------------------------------------------------------------------


class Engine:
    """podman or docker."""

    def __init__(self):
        self.name = next((name for name in ("podman", "docker") if shutil.which(name)), None)
        if not self.name:
            raise SystemExit("neither podman nor docker is there: apt-get install podman runc netavark iptables mmdebstrap")
        self.command, self.build_options, self.run_options = [self.name], [], []
        if self.name == "podman":
            # Where no systemd runs that could make groups of processes, and where crun does not know the kernel's old ones.
            self.command += ["--cgroup-manager", "cgroupfs", *(["--runtime", "runc"] if shutil.which("runc") else [])]
            # Podman's own format has no health checks.
            self.build_options = ["--format", "docker", "--layers=false"]
            # It would make more folders writable than were asked for.
            self.run_options = ["--read-only-tmpfs=false"]

    def __call__(self, *arguments, check=True, **options):
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, timeout=1800, **options)
        if check and done.returncode != 0:
            raise SystemExit(f"{self.name} {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done

    def limits(self):
        """An engine gives more by default than a process may give that lacks CAP_SYS_RESOURCE."""
        return [part for name, most in (("nofile", FILES), ("nproc", PROCESSES)) for part in ("--ulimit", f"{name}={most}:{most}")]

    def runs_nothing(self):
        """Why not even the loader of the base image runs, with no more than a container has by default; none where it does.

        A machine that is itself a container may not be let make others."""
        loader = next(path for folder in ("/lib64", "/lib") for path in pathlib.Path(folder).glob("ld-linux*.so.*"))
        done = self("run", "--rm", *self.limits(), "--entrypoint", str(loader), IMAGE, "--version", check=False)
        return done.stderr.strip()[-500:] if done.returncode else None

    def tidy(self, *arguments):
        self(*arguments, check=False)

    def has(self, image):
        return self("image", "inspect", image, check=False).returncode == 0 or self("pull", "--quiet", image, check=False).returncode == 0


# --- the image ----------------------------------------------------------------------------------


def build(engine, arguments, folder, stack):
    context = folder / "context"
    text = (ROOT / "Dockerfile").read_text()
    if arguments.whole:
        context = ROOT
    else:
        shutil.copytree(ROOT / "models", context / "models", ignore=shutil.ignore_patterns(".ortus"))
        shutil.copytree(arguments.library, context / "library")
        shutil.copy(arguments.ortus, context / "ortus")
        subprocess.run(["strip", "--strip-debug", context / "ortus"], check=True)
        text = stage_from(text, "build", "COPY ortus /usr/local/bin/ortus")
        text = stage_from(text, "library-cpu", "COPY library /lib-onnxruntime")
        text = without_stages(text, "library-cuda", "cuda")
    for base in sorted({base for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE) if "/" in base or ":" in base}):
        if not engine.has(base):
            stand_in(engine, base, folder)
            # Nobody else should take it for the real one.
            stack.callback(engine.tidy, "rmi", "--force", base)
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text(text)
    engine("build", *engine.build_options, "--tag", IMAGE, "--file", str(dockerfile), str(context))
    size = int(engine("image", "inspect", "--format", "{{.Size}}", IMAGE).stdout)
    finding(True, f"the image has {size / 1e6:.0f} MB")


def stages(text):
    """The text before the first stage, and each stage."""
    return re.split(r"^(?=FROM )", text, flags=re.MULTILINE)


def stage_from(text, name, copy):
    """The Dockerfile with a stage that only holds what is copied from here."""
    return "".join(f"FROM scratch AS {name}\n{copy}\n" if re.match(rf"FROM \S+ AS {name}\n", each) else each for each in stages(text))


def without_stages(text, *names):
    return "".join(each for each in stages(text) if not re.match(rf"FROM \S+ AS (?:{'|'.join(names)})\n", each))


def stand_in(engine, base, folder):
    if "distroless/cc" not in base:
        raise SystemExit(f"{base} can neither be pulled nor stood in for")
    root = folder / "distroless.tar"
    certificates = 'cat "$1"/usr/share/ca-certificates/mozilla/*.crt > "$1"/etc/ssl/certs/ca-certificates.crt'
    done = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(DISTROLESS)}", f"--customize-hook={certificates}", "bookworm", root],
        capture_output=True, text=True, timeout=600,
    )
    if done.returncode != 0:
        raise SystemExit(f"{base} can neither be pulled nor made: {done.stderr[-2000:]}")
    engine("import", str(root), base)
    print(f"       {base} is stood in for by Debian's packages", flush=True)


# --- a container --------------------------------------------------------------------------------


class Container:
    """A container as deploy/ runs it; its ports are on loopback."""

    def __init__(self, engine):
        self.engine = engine

    def __enter__(self):
        self.engine(
            "run", "--detach", "--name", NAME, *self.engine.run_options, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
            "--memory", f"{MEMORY_MB}m", "--volume", f"{NAME}:/models", "--publish", "127.0.0.1::8080", "--publish", "127.0.0.1::8081",
            *self.engine.limits(), IMAGE,
        )
        self.port = self.published(8080)
        deadline = time.monotonic() + START_SECONDS
        while self.ask("GET", "/readyz")[0] != 200:
            if time.monotonic() > deadline:
                raise SystemExit(f"the container did not become ready: {self.engine('logs', NAME, check=False).stderr[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.engine.tidy("rm", "--force", NAME)

    def published(self, port):
        return int(self.engine("port", NAME, str(port)).stdout.split(":")[-1])

    def inspected(self, template):
        return self.engine("inspect", "--format", template, NAME).stdout.strip()

    def inside(self, *command):
        return self.engine("exec", NAME, *command, check=False)

    def ask(self, method, path, body=None, kind=None, key=None):
        """Status and body; 0 where nothing answers."""
        headers = {name: value for name, value in (("Content-Type", kind), ("X-API-Key", key)) if value}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()


def few_rights(engine, container):
    process = pathlib.Path("/proc") / container.inspected("{{.State.Pid}}")
    if not process.exists():
        raise SystemExit("the container's processes cannot be seen from here")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    finding(set(status["Uid"].split()) == {UID} and set(status["Gid"].split()) == {UID}, f"user {status['Uid'].split()[0]}, group {status['Gid'].split()[0]}")
    held = {name: status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    finding(not any(int(value, 16) for value in held.values()), "no capability is held, and none can be got")
    finding(status["NoNewPrivs"].strip() == "1", "no program gives more privileges")
    finding(status["Seccomp"].strip() == "2", "system calls are filtered")
    root = next(line.split() for line in (process / "mounts").read_text().splitlines() if line.split()[1] == "/")
    finding("ro" in root[3].split(","), "the root file system is read-only")
    writable = {line.split()[1] for line in (process / "mounts").read_text().splitlines() if "rw" in line.split()[3].split(",")}
    expected = {"/models", "/tmp"}
    own = {path for path in writable if not re.match(r"/(proc|sys|dev|run|etc/(hosts|hostname|resolv\.conf))\b", path)}
    finding(own == expected, f"what it may write: {', '.join(sorted(own))}")
    user = json.loads(engine("image", "inspect", IMAGE).stdout)[0]["Config"]["User"]
    finding(user == f"{UID}:{UID}", f"the image's own user is {user}, so that Kubernetes can tell that it is not root")


def no_tools(engine, container, folder):
    exported = folder / "files.tar"
    engine("export", "--output", str(exported), NAME)
    with tarfile.open(exported) as files:
        members = [member for member in files if member.isfile() or member.issym() or member.islnk()]
    found = sorted(member.name for member in members if pathlib.PurePath(member.name).name in TOOLS)
    finding(len(members) > 10 and not found, f"none of {len(members)} files is a shell, a package manager or the like: {found}")
    risen = sorted(member.name for member in members if member.mode & 0o6000)
    finding(not risen, f"no file runs as somebody else: {risen}")
    started = [name for name in ("sh", "/bin/sh", "/bin/bash", "/bin/busybox") if container.inside(name, "-c", "true").returncode == 0]
    finding(not started, f"no shell can be started: {started}")


def digit_is_read(container, model, key=None):
    status, body = container.ask("POST", f"/v1/models/{model}/predict", (DIGITS / "samples" / "seven.png").read_bytes(), "image/png", key)
    best = json.loads(body)["predictions"][0][0] if status == 200 else body[:200]
    finding(status == 200 and best["label"] == "7" and best["score"] > 0.9, f"{model} reads a picture sent from outside: {status}, {best}")


def serves(container):
    digit_is_read(container, "digits")
    status, page = container.ask("GET", "/")
    finding(status == 200 and b"digits" in page, f"the dashboard answers from outside: {status}")
    check = json.loads(container.inspected("{{json .Config.Healthcheck}}"))["Test"]
    finding(check == ["CMD", "/usr/local/bin/ortus", "health"], f"the image names a check of its health: {check}")
    deadline = time.monotonic() + START_SECONDS
    state = health_of(container)
    while state != "healthy" and time.monotonic() < deadline:
        time.sleep(0.5)
        state = health_of(container)
    finding(state == "healthy", f"the engine calls the container {state}")


def health_of(container):
    if container.engine.name == "podman":
        # Its timer is systemd's; without it nobody asks but we.
        return "healthy" if container.engine("healthcheck", "run", NAME, check=False).returncode == 0 else "unhealthy"
    return container.inspected("{{.State.Health.Status}}")


def first_key(container):
    """Whoever may enter the container makes the first key; the server asks for one from then on."""
    status, _ = container.ask("POST", "/ui/models/digits/unload", "", "application/x-www-form-urlencoded")
    finding(status == 403, f"without a key the dashboard changes nothing from outside: {status}")
    made = container.inside("ortus", "key", "create", "--role", "admin", "--name", "first")
    key = next((word for word in made.stdout.split() if word.startswith("ortus_")), None)
    finding(made.returncode == 0 and key is not None, f"a key can be made inside: {made.stderr.strip()[:200]}")
    deadline = time.monotonic() + START_SECONDS
    while (status := container.ask("GET", "/v1/models")[0]) != 401 and time.monotonic() < deadline:
        time.sleep(0.1)
    finding(status == 401, f"from then on a key is asked for: {status}")
    return key


def uploads(container, key):
    boundary, archive = "ortus-image-check", io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        for path in [DIGITS / "model.toml", *(DIGITS / "1").iterdir()]:
            files.write(path, path.name)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="digits.zip"\r\n\r\n'
    body = head.encode() + archive.getvalue() + f"\r\n--{boundary}--\r\n".encode()
    status, answer = container.ask("POST", "/v1/models/uploaded/versions", body, f"multipart/form-data; boundary={boundary}", key)
    finding(status == 201, f"a model is uploaded with it: {status} {answer[:200]!r}")
    deadline = time.monotonic() + START_SECONDS
    while b'"ready"' not in container.ask("GET", "/v1/models/uploaded", key=key)[1] and time.monotonic() < deadline:
        time.sleep(0.1)
    digit_is_read(container, "uploaded", key)


def pulls(container, key):
    done = container.inside("ortus", "pull", "/models/digits/1/model.onnx", "--name", "pulled")
    finding(done.returncode == 0, f"a model is pulled inside: {done.stdout.strip()} {done.stderr.strip()[:200]}")
    deadline = time.monotonic() + START_SECONDS
    while b'"ready"' not in (said := container.ask("GET", "/v1/models/pulled", key=key)[1]) and time.monotonic() < deadline:
        time.sleep(0.1)
    finding(b'"ready"' in said, "the server finds it")


def stops(container):
    started = time.monotonic()
    container.engine("stop", "--time", str(STOP_SECONDS), NAME)
    code = container.inspected("{{.State.ExitCode}}")
    finding(code == "0", f"asked to stop, it ended by itself with {code} in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
