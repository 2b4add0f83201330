# SPDX-License-Identifier: GPL-3.0-or-later
"""The Debian package: built, installed, run, upgraded and purged on the machine the tests run on."""
