#!/usr/bin/env bash
# FINDING: setproctitle() also renames the thread, cut to 15 octets, so `pgrep -x NAME` finds the process no more.
#
# Software:  setproctitle 1.3.7 from PyPI, on Linux.
# Behaviour: the title is meant for the command line that ps shows, but the call sets the kernel's name of the thread
#            (/proc/PID/comm) to the first 15 octets of it as well. What tools match by is that name: pgrep -x, pkill -x,
#            pidof, killall, journald's _COMM. A title "NAME: 3 sessions" makes it "NAME: 3 s", which changes with every
#            number. setthreadtitle() afterwards puts the name right and leaves the command line as it is.
# Seen on 2026-11-30 (Python 3.11):
#            after setproctitle: comm is "post-sorter: 3 ", pgrep -x post-sorter: not found
#            after setthreadtitle: comm is "post-sorter", pgrep -x post-sorter: found
# Exit:      0 as described, 1 it changed, 77 the pinned package, pgrep or Python 3 with pip is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
skip() { echo "SKIP: $*"; exit 77; }

python3 -m pip --version >/dev/null 2>&1 || skip "no python3 with pip"
command -v pgrep >/dev/null || skip "no pgrep"
cd "$tmp"
python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/site" setproctitle==1.3.7 \
    || skip "setproctitle 1.3.7 cannot be installed"
echo "setproctitle 1.3.7, $(python3 --version)"

cat > look.py <<'EOF'
import os, subprocess
import setproctitle

def look(when):
    with open(f"/proc/{os.getpid()}/comm") as file:
        comm = file.read().rstrip("\n")
    listed = subprocess.run(["pgrep", "-x", "post-sorter"], capture_output=True, text=True).stdout.split()
    found = "found" if str(os.getpid()) in listed else "not found"
    print(f'after {when}: comm is "{comm}", pgrep -x post-sorter: {found}')

setproctitle.setproctitle("post-sorter: 3 sessions")
look("setproctitle")
setproctitle.setthreadtitle("post-sorter")
look("setthreadtitle")
EOF
seen=$(PYTHONPATH=$tmp/site python3 look.py)
echo "$seen"
expected='after setproctitle: comm is "post-sorter: 3 ", pgrep -x post-sorter: not found
after setthreadtitle: comm is "post-sorter", pgrep -x post-sorter: found'
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: the thread is renamed along with the title"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
