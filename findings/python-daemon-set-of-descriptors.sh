#!/usr/bin/env bash
# FINDING: `import daemon` of python-daemon 2.3.2 (Debian 12's) keeps a set of every descriptor number up to the hard limit.
#
# Software:  python-daemon 2.3.2 from PyPI; 3.1.2 for comparison.
# Behaviour: the module makes, while it is imported and before any DaemonContext, set(range(0, HARD LIMIT)), and keeps it for
#            good. So a service that imports it costs memory by the limit of whoever starts it: nothing that one sees at a
#            shell's 1,024, 2.7 MB at 20,000, and by the same rule 100 MB at the 1,048,576 of many containers. Only the hard
#            limit counts; to lower the soft one changes nothing. 3.1.2 keeps a range, which costs nothing.
# Seen on 2026-11-30 (Python 3.11; memory traced over the import):
#            2.3.2: set of 1024 numbers at a hard limit of 1024, set of 16384 at 16384 (soft limit 1024)
#            3.1.2: range at both
# Exit:      0 as described, 1 it changed, 77 the pinned packages or Python 3 with pip are not to be had.
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
skip() { echo "SKIP: $*"; exit 77; }

python3 -m pip --version >/dev/null 2>&1 || skip "no python3 with pip"
hard=$(ulimit -Hn)
[ "$hard" = unlimited ] || [ "$hard" -ge 16384 ] || skip "the hard limit of descriptors here is $hard"
cd "$tmp"
for version in 2.3.2 3.1.2; do
    python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --target "$tmp/$version" \
        python-daemon==$version lockfile==0.12.2 || skip "python-daemon $version cannot be installed"
done

cat > look.py <<'EOF'
import resource, sys
import daemon.daemon as module
kept = [value for value in vars(module).values() if type(value) in (set, range) and len(value) >= 1000]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for value in kept:
    print(f"{type(value).__name__} of {len(value)} numbers at a hard limit of {hard}, {sys.getsizeof(value)} octets itself")
EOF
seen=$(for version in 2.3.2 3.1.2; do
    for limit in 1024 16384; do
        (ulimit -Sn 1024; ulimit -Hn "$limit"; echo "$version: $(PYTHONPATH=$tmp/$version python3 look.py)")
    done
done)
echo "$(python3 --version)"
echo "$seen"
kinds=$(sed -E 's/ at a hard.*//' <<< "$seen")
expected='2.3.2: set of 1024 numbers
2.3.2: set of 16384 numbers
3.1.2: range of 1024 numbers
3.1.2: range of 16384 numbers'
if [ "$kinds" = "$expected" ]; then
    echo "AS DESCRIBED: a set by the hard limit in 2.3.2, a range in 3.1.2"
else
    echo "CHANGED: expected"; echo "$expected"; exit 1
fi
