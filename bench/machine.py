# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine is, and which versions of everything are measured on it."""

import os
import platform
import re
import subprocess
from pathlib import Path

from bench.peers import SBIN, version_of
from bench.proxy import LmtpProxy


def facts() -> dict[str, str]:
    """load: of the minute before; figures from a machine that has other work are of little use."""
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text("ascii"))
    return {
        "CPU": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown",
        "kernel": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _cpu_model() -> str:
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text("utf-8", "replace"))
    return model[1] if model else platform.machine()


def versions(ours: LmtpProxy, beside: LmtpProxy | None = None) -> dict[str, str]:
    """Of everything that is measured. beside: the proxy of another checkout. What is not there is left away."""
    python = ours.python
    path = {name: next((f"{directory}/{name}" for directory in SBIN.split(":") if os.access(f"{directory}/{name}",
            os.X_OK)), "") for name in ("haproxy", "dovecot")}  # fmt: skip
    packages = "import gevent, greenlet, yaml; print(gevent.__version__, greenlet.__version__, yaml.__version__)"
    found = {
        "lmtp-proxy": _version(ours),
        "commit": commit(ours.root),
        "beside": "" if beside is None else f"{_version(beside)}, {commit(beside.root) or beside.root.name}",
        "Python": version_of([python, "-c", "import platform; print(platform.python_version())"]),
        "gevent, greenlet, PyYAML": version_of([python, "-c", packages]).replace(" ", ", "),
        "HAProxy": _number(version_of([path["haproxy"], "-v"]) if path["haproxy"] else ""),
        "Dovecot": _number(version_of([path["dovecot"], "--version"]) if path["dovecot"] else ""),
        "C compiler": version_of([os.environ.get("CC", "cc"), "--version"]),
    }
    return {name: version for name, version in found.items() if version}


def _version(proxy: LmtpProxy) -> str:
    return version_of([proxy.python, str(proxy.program), "--version"]).removeprefix("lmtp-proxy ")


def commit(root: Path) -> str:
    """What is checked out there; "" where it is no checkout of git itself, as one that was exported."""

    def said(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    top = said("rev-parse", "--show-toplevel")  # of whatever it may lie in
    return said("describe", "--always", "--dirty") if top and Path(top).resolve() == root.resolve() else ""


def _number(text: str) -> str:
    number = re.search(r"\d+\.\d+[\w.+~-]*", text)
    return number[0] if number else text
