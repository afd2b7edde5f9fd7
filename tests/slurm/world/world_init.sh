#!/usr/bin/env bash
# world_init.sh ROOT NODES: process 1 of the world, which is login node and controller: a bridge, a network namespace for each
# node, munged, slurmctld. ROOT/run/ready appears when all is up. The world, and all in it, ends with this process.
set -euo pipefail
root=$1 nodes=$2

mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/munge /run/netns
mount --bind "$root/etc/hosts" /etc/hosts
mount -t tmpfs -o size=12m,mode=755 small "$root/shared/small"  # a quota that a test can reach
hostname ctl

ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up
for number in $(seq "$nodes"); do
  ip netns add "n$number"
  ip link add "ve-n$number" type veth peer name eth0 netns "n$number"
  ip link set "ve-n$number" master br0 up
  ip -n "n$number" link set lo up
  ip -n "n$number" addr add "10.77.0.$number/24" dev eth0
  ip -n "n$number" link set eth0 up
done

munged --key-file="$root/etc/munge.key" --pid-file=/run/munge/munged.pid --log-file=/run/munge/munged.log --seed-file=/run/munge/seed
slurmctld
touch "$root/run/ready"
trap : CHLD  # reap whatever ends
while :; do
  sleep 1000000 &
  wait $! || true
done
