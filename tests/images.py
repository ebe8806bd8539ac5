"""Images without an engine: the instructions of a Dockerfile, carried out in folders in place of file systems.

What differs from an engine: `uv` installs in place of pip (the same requirements, in seconds), and of a base image only
Python is there, or Airflow as its slim image has it.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services import LOOPBACK, free_ports

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "docker"
NAMES = sorted(path.name.partition(".")[0] for path in FOLDER.glob("*.Dockerfile"))
AIRFLOW_ENVIRONMENT = "/home/airflow/.local"  # of the official image
# what the official image's entry point takes for a program, and of Airflow's own commands those that we start: before any
# other word it puts `airflow`
ENTERED = {"bash", "python", "airflow", "api-server", "celery", "dag-processor", "scheduler", "triggerer"}
BUILT = {"secateur-airflow": "airflow"}  # images of ours that others start from

# before the folders of our images
_ROOTS = re.compile(r"(?<![\w./}])/(?=(?:home/airflow|opt/airflow|opt/secateur|srv/s3|wheels)\b)")
_INSTALL = re.compile(r"(\S+/bin/)?pip install --no-cache-dir")
_WHEEL = re.compile(r"pip wheel --no-cache-dir --no-deps --wheel-dir")
_UV = Path(sys.executable).with_name("uv")


@dataclass
class Image:
    """What an image came to hold: its root folder, its variables, and how it starts and says that it is well."""

    root: Path
    variables: dict[str, str]
    folder: str = "/"
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    port: str = ""

    def rooted(self, text: str) -> str:
        """A text of the image, in which its folders lie below the root."""
        return _ROOTS.sub(f"{self.root}/", text)

    def at(self, place: str) -> Path:
        """Where a path of the image is, seen from its working folder."""
        return self.root / Path(self.folder, place).relative_to("/")

    def run(self, *argv: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """A command, with nothing in its environment but what the image gives and these variables."""
        return subprocess.run(
            argv,
            env=self.variables | variables,
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def started(self, command: list[str] | None = None) -> tuple[list[str], list[str], str]:
        """The entry command (with other arguments than the image's) and its health check, on a free port of loopback."""
        (free,) = free_ports(1)
        argv, health = (
            [
                self.rooted(re.sub(rf"\b{self.port}\b", str(free), word) if self.port else word).replace(
                    "0.0.0.0", LOOPBACK
                )
                for word in words
            ]
            for words in ([*self.entry, *(command or self.command)], self.health)
        )
        return argv, health, f"http://{LOOPBACK}:{free}"


def locked(package: str) -> str:
    """The version in requirements.lock."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def stages(name: str) -> list[list[tuple[str, str]]]:
    """The instructions of each stage of an image, verb and rest, from its FROM on; arguments of bases filled in."""
    joined = re.sub(r"\s*\\\n\s*", " ", (FOLDER / f"{name}.Dockerfile").read_text())
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    arguments: dict[str, str] = {}
    found: list[list[tuple[str, str]]] = []
    for verb, _, rest in (line.partition(" ") for line in lines):
        if verb == "FROM":
            found.append([(verb, _filled(rest, arguments))])
        elif found:
            found[-1].append((verb, rest))
        else:
            argument, _, value = rest.partition("=")
            arguments[argument] = value
    return found


def build(name: str, folder: Path) -> Image:
    """Carry out the instructions of an image; its files are in the folder's `root`.

    Raises:
        AssertionError: an instruction failed; with its output.
    """
    image: Image | None = None
    for number, stage in enumerate(stages(name)):
        base, _, label = stage[0][1].partition(" AS ")
        if image is not None:
            image.root.rename(folder / f"stage-{number - 1}")
        image = _from(base, folder)
        for verb, rest in stage[1:]:
            _carry_out(image, folder, verb, rest)
        if label:
            (folder / f"named-{label}").symlink_to(folder / f"stage-{number}")
    assert image is not None
    return image


def _from(base: str, folder: Path) -> Image:
    """An image as its base leaves it."""
    built = BUILT.get(base.partition(":")[0])
    if built:
        return build(built, folder)
    root = folder / "root"
    root.mkdir()
    image = Image(root, {"PATH": f"{folder / 'python'}:{os.defpath}", "HOME": str(folder), "LANG": "C.UTF-8"})
    if not base.startswith("apache/airflow:"):
        (folder / "python").mkdir(exist_ok=True)
        (folder / "python" / "python").unlink(missing_ok=True)
        (folder / "python" / "python").symlink_to(sys.executable)
        return image
    version = base.partition(":")[2].removeprefix("slim-").partition("-")[0]
    home = image.at(AIRFLOW_ENVIRONMENT)
    image.variables |= {
        "AIRFLOW_VERSION": version,
        "AIRFLOW_HOME": str(image.at("/opt/airflow")),
        "PATH": f"{home}/bin:{os.defpath}",
    }
    Path(image.variables["AIRFLOW_HOME"]).mkdir(parents=True)
    _shell(image, f"{_UV} venv -q --python {sys.executable} {home}")
    _shell(image, f"pip install --no-cache-dir -c {REPOSITORY}/requirements.lock apache-airflow=={version}")
    image.entry = ["airflow"]
    return image


def _carry_out(image: Image, folder: Path, verb: str, rest: str) -> None:
    if verb == "WORKDIR":
        image.folder = rest
        image.at(rest).mkdir(parents=True, exist_ok=True)
    elif verb == "COPY":
        _copy(image, folder, rest)
    elif verb == "RUN":
        with _mounted(image, folder, rest) as text:
            _shell(image, image.rooted(text))
    elif verb in ("ENV", "ARG"):
        for word in shlex.split(rest):
            name, given, value = word.partition("=")
            if given:
                image.variables[name] = image.rooted(_filled(value, image.variables))
    elif verb in ("ENTRYPOINT", "CMD"):
        words = json.loads(rest)
        image.entry, image.command = (words, []) if verb == "ENTRYPOINT" else (image.entry, words)
    elif verb == "HEALTHCHECK":
        image.health = json.loads(rest.partition(" CMD ")[2])
    elif verb == "EXPOSE":
        image.port = rest


def _copy(image: Image, folder: Path, rest: str) -> None:
    words = rest.split()
    options = dict(word.removeprefix("--").split("=") for word in words if word.startswith("--"))
    *sources, place = [word for word in words if not word.startswith("--")]
    goal = image.at(place)
    for source in sources:
        start = folder / f"named-{options['from']}" / source.lstrip("/") if "from" in options else REPOSITORY / source
        if start.is_dir() and "from" in options:
            shutil.copytree(start, goal, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
        elif start.is_dir():
            shutil.copytree(start, goal, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(start, goal / start.name if place.endswith("/") else goal)


@contextlib.contextmanager
def _mounted(image: Image, folder: Path, text: str) -> Iterator[str]:
    """What a RUN does, with the folder that it mounts from another stage in place while it does."""
    flag, _, rest = text.partition(" ")
    if not flag.startswith("--mount="):
        yield text
        return
    mount = dict(option.split("=") for option in flag.removeprefix("--mount=").split(","))
    target = image.at(mount["target"])
    target.symlink_to(folder / f"named-{mount['from']}" / mount["source"].lstrip("/"))
    try:
        yield rest
    finally:
        target.unlink()


def _shell(image: Image, text: str) -> None:
    """Run a line as an image's shell does, but for the programs that stand in for pip and for changes of owner."""

    def installing(found: re.Match[str]) -> str:
        python = f"{found[1]}python" if found[1] else shutil.which("python", path=image.variables["PATH"])
        assert str(python).startswith(f"{image.root}/"), f"{text}: into the image, and nowhere else"
        return f"{_UV} pip install -q --python {python}"

    text = _WHEEL.sub(f"{_UV} build -q --wheel --out-dir", text)
    text = _INSTALL.sub(installing, text).replace("install -d -o 50000 -g 0", "install -d")
    # how this machine reaches its packages is its own affair; what it has installed is not to be seen
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if "PIP_FIND_LINKS" in outside:
        outside["UV_FIND_LINKS"] = ",".join(outside["PIP_FIND_LINKS"].split())
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", text],
        env={**outside, **image.variables, "HOME": outside.get("HOME", "/")},
        cwd=image.at("."),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?([A-Z_]+)\}?", lambda found: values.get(found[1], ""), text)
