# SPDX-License-Identifier: GPL-3.0-or-later
"""End-to-end tests: real Postfix, Cyrus and Dovecot around the real proxy process. install.sh brings what they need."""
