# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine is, and which versions of everything are measured on it."""

import os
import platform
import re
from pathlib import Path

from bench.peers import SBIN, version_of
from bench.proxy import PROGRAM


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


def versions(python: str) -> dict[str, str]:
    """python: the interpreter that runs the proxy. What is not there is left away."""
    path = {name: next((f"{directory}/{name}" for directory in SBIN.split(":") if os.access(f"{directory}/{name}",
            os.X_OK)), "") for name in ("haproxy", "dovecot")}  # fmt: skip
    packages = "import gevent, greenlet, yaml; print(gevent.__version__, greenlet.__version__, yaml.__version__)"
    found = {
        "lmtp-proxy": version_of([python, str(PROGRAM), "--version"]).removeprefix("lmtp-proxy "),
        "commit": version_of(["git", "-C", str(PROGRAM.parent), "describe", "--always", "--dirty"]),
        "Python": version_of([python, "-c", "import platform; print(platform.python_version())"]),
        "gevent, greenlet, PyYAML": version_of([python, "-c", packages]).replace(" ", ", "),
        "HAProxy": _number(version_of([path["haproxy"], "-v"]) if path["haproxy"] else ""),
        "Dovecot": _number(version_of([path["dovecot"], "--version"]) if path["dovecot"] else ""),
        "C compiler": version_of([os.environ.get("CC", "cc"), "--version"]),
    }
    return {name: version for name, version in found.items() if version}


def _number(text: str) -> str:
    number = re.search(r"\d+\.\d+[\w.+~-]*", text)
    return number[0] if number else text
