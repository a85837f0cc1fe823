#!/usr/bin/env bash
# What a SLURM job runs; launch/slurm.sh submits it.
#
#   launch/slurm_job.sh [--dry-run] --config=... --workdir=...
set -euo pipefail

if [ "${1:-}" = --help ]; then
  sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
  exit
fi
dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
if [ $# = 0 ]; then
  echo "error: the flags of training are missing (see $0 --help)" >&2
  exit 2
fi

# The first task that ends must not take others along that still save.
command=(srun --kill-on-bad-exit=0
  .venv/bin/python -m shared_tfm train --distributed "$@")
if [ -n "$dry_run" ]; then
  printf -v line '%q ' "${command[@]}"
  echo "${line% }"
  exit
fi

# Before the time is up, SIGTERM goes to the tasks alone: they save, and the job
# is queued again. Where this shell gets one too, the job was cancelled, or
# preempted and SLURM itself queues it again.
ended=
trap 'ended=1' TERM
status=0
"${command[@]}" || status=$?
if [ "$status" = 143 ] && [ -z "$ended" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
