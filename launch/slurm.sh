#!/usr/bin/env bash
# Trains on the nodes of a SLURM cluster: one process per GPU, or per node.
#
#   launch/slurm.sh [--dry-run] --nodes=N --time=HH:MM:SS [--gpus=PER_NODE]
#     [--name=JOB] [--partition=P] [--account=A] -- --config=... --workdir=...
#
# Run it in the repository, on storage that all nodes see, with .venv made.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

nodes='' time='' gpus=0 name=shared_tfm partition='' account=''
parse 'nodes time' 'gpus name partition account' "$@"
need_training
need_like nodes '[1-9][0-9]*' 'a number of nodes'
need_like gpus '[0-9]+' 'a number of GPUs on each node'

options=(--job-name="$name" --nodes="$nodes" --time="$time")
if [ "$gpus" -gt 0 ]; then
  options+=(--ntasks-per-node="$gpus" --gpus-per-node="$gpus")
else
  options+=(--ntasks-per-node=1)
fi
[ -z "$partition" ] || options+=(--partition="$partition")
[ -z "$account" ] || options+=(--account="$account")

# Two minutes before the end every task is told to save; see slurm_job.sh.
options+=(--signal=TERM@120 --requeue --open-mode=append)
options+=(--output="$name-%j.log")

job=$(dirname "$0")/slurm_job.sh
run sbatch "${options[@]}" "$job" "${flags[@]}"
if [ -n "$dry_run" ]; then
  echo '# and in the job:'
  "$job" --dry-run "${flags[@]}"
fi
