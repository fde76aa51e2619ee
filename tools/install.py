"""`make setup`: installs the packages of a lock file into a virtual environment, by uv, or by pip if uv cannot be had.
It uses the standard library alone. Python 3.6 can read it too, so that an old Python gets a clear answer."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    version = ".".join(map(str, sys.version_info[:3]))
    sys.exit(
        f"error: {sys.executable} is Python {version}, and 3.11 or later is needed; PYTHON=<newer python> make setup"
    )

import ast
import os
import re
import subprocess
import tempfile
from pathlib import Path

UV = "uv==0.13.9"
KINDS = {"cuda": "3.3 GB", "cpu": "0.5 GB"}  # builds of torch, and what is fetched with each on Linux
ONLY_CUDA = re.compile(r"^(nvidia-(?!ml-py)|cuda-|triton)[^\n]*\n", flags=re.MULTILINE)
# The settings of pip in the words of uv, which does not read them.
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}


def uv_environment(listed: str, environment: dict[str, str]) -> dict[str, str]:
    """The environment for uv, from the output of `pip config list`. What the user has set for uv itself comes first."""
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "true"}  # as pip has it
    if environment.get("REQUESTS_CA_BUNDLE"):
        found["SSL_CERT_FILE"] = environment["REQUESTS_CA_BUNDLE"]
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # variables come last, and win
        name, _, value = line.partition("=")
        setting = SETTINGS.get(name.rpartition(".")[2], "")
        words = ast.literal_eval(value).split() if setting else []
        if words:
            found[setting] = ("," if setting == "UV_FIND_LINKS" else " ").join(words)
    return found | environment


def installers(python: str) -> list[tuple[list[str], dict[str, str]]]:
    """The commands that install packages, the best first, and the environment of each."""
    pip = [python, "-m", "pip"]
    plain, quiet = dict(os.environ), ["--quiet", "--disable-pip-version-check"]
    fetched = subprocess.run([*pip, "install", *quiet, "--only-binary", ":all:", UV], capture_output=True)
    by_pip = ([*pip, "install", *quiet], plain)
    if fetched.returncode:
        print(f"{UV} cannot be had here: pip takes its place, and takes minutes", flush=True)
        return [by_pip]
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout
    by_uv = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):  # else each stage would compile torch again, which doubles its time
        by_uv.append("--compile-bytecode")
    return [(by_uv, uv_environment(listed, plain)), by_pip]


def main(folder: Path, lock: Path, torch: str, torch_index: str) -> None:
    """Makes the environment anew. Its file `torch` keeps the build that was asked for, also after an interruption."""
    kept = folder / "torch"
    torch = torch or (kept.read_text() if kept.is_file() else "") or "cuda"
    if torch not in KINDS:
        sys.exit(f"error: TORCH={torch}: must be one of {', '.join(KINDS)}")
    size = KINDS[torch if sys.platform == "linux" else "cpu"]
    hint = f"; with TORCH=cpu, for a machine without a GPU of NVIDIA, {KINDS['cpu']}" if size != KINDS["cpu"] else ""
    print(f"setting up {folder}: fetches about {size} once{hint}", flush=True)
    base = getattr(sys, "_base_executable", sys.executable)  # because this may be the environment that is replaced
    if subprocess.run([base, "-m", "venv", "--clear", str(folder)]).returncode:
        sys.exit(f"error: {folder} could not be made; mend what is said above, and start again")
    kept.write_text(torch)
    pins, options = lock.read_text(), []
    if torch == "cpu":
        pins, options = ONLY_CUDA.sub("", pins), ["--extra-index-url", torch_index]
    with tempfile.TemporaryDirectory() as scratch:
        chosen = Path(scratch, "requirements.txt")
        chosen.write_text(pins)
        for command, environment in installers(str(folder.absolute() / "bin/python")):
            packages = subprocess.run([*command, *options, "--requirement", str(chosen)], env=environment)
            project = ["--no-deps", "--no-build-isolation", "--editable", "."]
            if not packages.returncode and not subprocess.run([*command, *project], env=environment).returncode:
                (folder / "installed").write_text(f"{folder.resolve().parent}\n")  # an environment cannot be moved
                return
    sys.exit(
        "error: the packages could not be installed; if they cannot be fetched, check the network, HTTPS_PROXY, "
        "PIP_INDEX_URL and PIP_CERT, and start again"
    )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except KeyboardInterrupt:
        sys.exit("interrupted; the next make target starts the set-up again")
