#!/usr/bin/env bash
# node_init.sh ROOT NODE GPUS SHARED…: process 1 of a node: its own host name, /proc, /run, /tmp and /dev/shm, munged, slurmd. Of what
# lies below /tmp it sees the folders SHARED alone, as it would on a cluster's shared file system.
set -euo pipefail
root=$1 node=$2 gpus=$3
shift 3
hostname "$node"
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/munge /run/spool
mount -t tmpfs tmpfs /dev/shm
number=0
for path in "$@"; do
  mkdir -p "/run/shared/$number"
  mount --rbind "$path" "/run/shared/$number"
  number=$((number + 1))
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
number=0
for path in "$@"; do
  mkdir -p "$path"
  mount --move "/run/shared/$number" "$path"
  number=$((number + 1))
done
munged --key-file="$root/etc/munge.key" --pid-file=/run/munge/munged.pid --log-file=/run/munge/munged.log --seed-file=/run/munge/seed
for number in $(seq 0 $((gpus - 1))); do  # Slurm wants a character device for each
  : > "/run/fakegpu$number"
  mount --bind /dev/null "/run/fakegpu$number"
done
slurmd
trap : CHLD
while :; do
  sleep 1000000 &
  wait $! || true
done
