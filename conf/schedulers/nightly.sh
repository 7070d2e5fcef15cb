#!/bin/bash
# For cron: 0 1 * * *  /opt/jobs/nightly.sh /opt/jobs/embeddings.yaml /var/lib/gristmill/embeddings.json [KEY=VALUE…]
#
# What it prints cron mails: nothing after a night that went well. It ends with gristmill's own exit code, and with 75
# where the last night's run still goes on.
set -u
conf=$1 result=$2
shift 2
settings=()
for value in "$@"; do settings+=(--set "$value"); done

exec 9>"$result.lock"
if ! flock --nonblock 9; then
  echo "the run before this one still goes on; nothing was started" >&2
  exit 75
fi

for try in 1 2 3; do
  gristmill score "$conf" "${settings[@]}" --result "$result" 2>"$result.log" 9>&- # the engine is to hold no lock
  code=$?
  case $code in
    1 | 5) echo "try $try ended with exit code $code; the same command goes on from what was committed" >&2 ;;
    *) break ;;
  esac
done

case $code in
  0) ;;
  4) echo "the deadline came first; the next night takes what is left: $result" >&2 ;;
  3) echo "too many rows failed; look at the report that is named in $result" >&2 ;;
  *) echo "exit code $code; see $result and $result.log" >&2 ;;
esac
[ "$code" -eq 0 ] || tail -n 5 "$result.log" >&2
exit "$code"
