#!/usr/bin/env bash
# Make a virtual environment and install the project into it: install.sh FOLDER WHAT (. or .[dev]).
set -euo pipefail
venv=$1 what=$2
need_mib=3000
log=$venv/install.log

fail() { echo "erase-serve: $*" >&2; exit 1; }

python=
for candidate in python3 python3.13 python3.12 python3.11; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed; none was found on PATH"

if [ ! -x "$venv/bin/python" ]; then
  free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
  [ "$free_mib" -ge "$need_mib" ] || fail "the disk has only $free_mib MiB left; the packages need $need_mib MiB"
  echo "[install] making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || fail "cannot make a virtual environment (on Debian: apt install python3-venv)"
fi

echo "[install] installing $what (the first time takes a few minutes; log: $log)"
"$venv/bin/python" -m pip install --disable-pip-version-check --retries 2 --constraint constraints.txt \
  --editable "$what" >"$log" 2>&1 </dev/null &
pip=$!
# A background job does not hear Ctrl-C by itself.
trap 'kill "$pip" 2>/dev/null; exit 130' INT TERM
beat=0
while kill -0 "$pip" 2>/dev/null; do
  sleep 0.2
  beat=$((beat + 1))
  [ $((beat % 50)) -ne 0 ] || echo "[install] $(grep -oE '^ *(Collecting|Downloading|Installing)[^:]*' "$log" | tail -1 | cut -c1-80)"
done
if ! wait "$pip"; then
  grep -E 'ERROR|No space left' "$log" | tail -5 >&2 || true
  if grep -q 'No space left' "$log"; then
    fail "the disk is full; free some room and run the same command again"
  elif grep -qE 'NewConnectionError|Max retries|ConnectTimeout|Name or service|Could not find a version' "$log"; then
    fail "the package index cannot be reached or lacks a package; check the network or pip's index settings ($log)"
  fi
  fail "the packages cannot be installed; the reason is in $log"
fi
