# SPDX-License-Identifier: GPL-3.0-or-later
"""Packaging metadata. The version stands in lmtp_proxy/__init__.py alone; it is read as text, because importing
the package would need its dependencies before pip has had a chance to install them."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
PACKAGE = (HERE / "lmtp_proxy/__init__.py").read_text("utf-8")
VERSION = re.search(r'^__version__(?:: \w+)? = "([^"]+)"', PACKAGE, re.MULTILINE)
assert VERSION is not None, "lmtp_proxy/__init__.py has no __version__ line"

setup(
    name="lmtp-proxy",
    version=VERSION[1],
    description="LMTP proxy: each recipient's mail goes to the store that holds the mailbox, while users move",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="GPL-3.0-or-later",
    python_requires=">=3.11",
    packages=find_packages(include=["lmtp_proxy", "lmtp_proxy.*"]),
    # Lower bounds are Debian 12's packages; both ends are tested.
    install_requires=[
        "gevent>=22.10",
        "idna>=3.3",
        "PyYAML>=6.0",
        "prometheus_client>=0.16",
        "python-daemon>=2.3",
        "setproctitle>=1.3",
    ],
    extras_require={
        "live": ["rich>=13.3"],
        "test": [
            "coverage>=7.2",
            "hypothesis>=6.67",
            "mypy>=1.8",
            "pytest>=7.2",
            "pytest-timeout>=2.1",
            "pytest-xdist>=3.1",
            "rich>=13.3",
            "ruff>=0.5",
            "types-PyYAML",
            "types-gevent",
            "types-setuptools",
        ],
    },
    entry_points={
        "console_scripts": ["lmtp-proxy = lmtp_proxy.cli:main", "lmtp-proxyctl = lmtp_proxy.ctl.command:main"],
    },
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Communications :: Email :: Mail Transport Agents",
    ],
)
