#!/usr/bin/env bash
# node_start.sh ROOT NODE GPUS SHARED…: run in the world; switches a node on. Its outermost process is /run/NODE.pid.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$1 node=$2
setsid ip netns exec "$node" unshare -m -u -i -p --fork --kill-child --propagation private -- "$here/node_init.sh" "$@" \
  > "$root/log/init.$node.log" 2>&1 < /dev/null &
echo $! > "/run/$node.pid"
