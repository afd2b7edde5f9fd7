#!/usr/bin/env bash
# What a node of train.sbatch does: `torchrun` for its processes. srun starts it once a node, with the arguments of `codemix train`.
set -euo pipefail

python=${CODEMIX_PYTHON:-python}
container=() storage=
eval "container=(${CODEMIX_CONTAINER:-})"
arguments=("$@")

# Shards of file://, s3:// and gs:// sources are kept on the node's own disk: the run's cache does it, this says where.
if [ -n "${CODEMIX_NODE_STORAGE:-}" ]; then
  eval "storage=\"$CODEMIX_NODE_STORAGE\""
  mkdir -p "$storage"
  arguments+=("data.cache.folder=$storage")
fi

threads=$((${SLURM_CPUS_PER_TASK:-1} / CODEMIX_PROCESSES))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
# Which node serves the meeting point is said, not guessed from addresses. Not every cluster numbers tasks by the nodes' names.
if [ -n "${SLURMD_NODENAME:-}" ]; then this=$SLURMD_NODENAME first=$CODEMIX_MASTER; else this=$SLURM_PROCID first=0; fi
serves=0
[ "$this" != "$first" ] || serves=1

{ # read by bash as a whole: the file may be replaced while training runs
${container[@]+"${container[@]}"} "$python" -P -m torch.distributed.run \
  --nnodes="$CODEMIX_NODES" --nproc-per-node="$CODEMIX_PROCESSES" --max-restarts=0 \
  --rdzv-backend=c10d --rdzv-endpoint="$CODEMIX_MASTER:$CODEMIX_PORT" --rdzv-id="$CODEMIX_RENDEZVOUS" --rdzv-conf="is_host=$serves" \
  --no-python "$python" -P -m megatron_codemix train "${arguments[@]}" &
trap : TERM USR1 INT  # Slurm signals torchrun as well: its end is waited for
while :; do
  code=0
  wait $! || code=$?
  kill -0 $! 2> /dev/null && continue
  again=0
  wait $! 2> /dev/null || again=$?  # it may have ended between the signal and the look at it
  [ "$again" = 127 ] || code=$again
  break
done

# A node whose network was cut may have been taken for lost, and its job started elsewhere. srun would answer this task's end by
# ending the step of that start once the network is back: the steps of all starts of a job have the same numbers.
if [ "$code" != 0 ] && ${container[@]+"${container[@]}"} "$python" -P -m megatron_codemix.slurm.stale; then
  exec sleep infinity
fi
exit "$code"
}
