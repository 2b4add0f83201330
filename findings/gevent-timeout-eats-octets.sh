#!/usr/bin/env bash
# FINDING: a gevent.Timeout (or kill) during makefile().readline() throws away the octets that had arrived, and nothing says so.
#
# Software:  gevent 26.9.0 from PyPI, a socket's makefile("rb"), buffered and unbuffered alike.
# Behaviour: half a line has come when gevent.Timeout fires inside readline(). The half is in no buffer afterwards: the next
#            readline() on the same file gives the second half as if it were a line. A client that asks for a reply with a
#            limit and reads on later takes "rest" for a reply, and a server half a command. The socket's own time-out,
#            settimeout(), is safe in this: after it every further read of that file raises OSError.
# Seen on 2026-11-30 ("250 first", a time-out, then " second"):
#            gevent.Timeout: b' second\r\n'
#            unbuffered gevent.Timeout: b' second\r\n'
#            greenlet killed: b' second\r\n'
#            settimeout: OSError cannot read from timed out object
# Exit:      0 as described, 1 it changed, 77 the pinned package or Python 3 with pip is not to be had.
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
skip() { echo "SKIP: $*"; exit 77; }

python3 -m pip --version >/dev/null 2>&1 || skip "no python3 with pip"
python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/site" gevent==26.9.0 \
    || skip "gevent 26.9.0 cannot be installed"
export PYTHONPATH=$tmp/site
echo "gevent 26.9.0, $(python3 --version)"

cat > "$tmp/probe.py" <<'EOF'
import gevent
from gevent import socket

def probe(name, interrupt, **how):
    a, b = socket.socketpair()
    f = a.makefile("rb", **how)
    b.sendall(b"250 first")
    interrupt(a, f)
    b.sendall(b" second\r\n")
    try:
        print(f"{name}: {f.readline()}")
    except OSError as error:
        print(f"{name}: {type(error).__name__} {error}")

def timeout(a, f):
    with gevent.Timeout(0.2, False):
        f.readline()

def kill(a, f):
    reader = gevent.spawn(f.readline)
    gevent.sleep(0.2)
    reader.kill()

def settimeout(a, f):
    a.settimeout(0.2)
    try:
        f.readline()
    except TimeoutError:
        pass

probe("gevent.Timeout", timeout)
probe("unbuffered gevent.Timeout", timeout, buffering=0)
probe("greenlet killed", kill)
probe("settimeout", settimeout)
EOF
seen=$(python3 "$tmp/probe.py")
echo "$seen"
expected="gevent.Timeout: b' second\r\n'
unbuffered gevent.Timeout: b' second\r\n'
greenlet killed: b' second\r\n'
settimeout: OSError cannot read from timed out object"
if [ "$seen" = "$expected" ]; then
    echo "AS DESCRIBED: the first half is gone"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
