#!/usr/bin/env bash
# Trains on a TPU pod: queues for it, then runs the image on all its workers.
#
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE --type=ACCELERATOR
#     --runtime=VERSION --image=IMAGE --mount=FOLDER [--prepare=COMMAND]
#     [--spot=yes] [--project=PROJECT] -- --config=... --workdir=FOLDER/...
#
# FOLDER is on every worker, the same storage on all; COMMAND, which is run on
# all workers first, may mount it. A TPU that is taken away is queued for again.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

name='' zone='' type='' runtime='' image='' mount=''
prepare='' spot=no project=''
parse 'name zone type runtime image mount' 'prepare spot project' "$@"
need_training
need_like mount '/.*' 'an absolute path'
need_like spot 'yes|no' 'yes or no'

queue=(gcloud compute tpus queued-resources)
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
create=("${queue[@]}" create "$name" "${where[@]}" --node-id="$name"
  --accelerator-type="$type" --runtime-version="$runtime")
[ "$spot" = no ] || create+=(--spot)
look=("${queue[@]}" describe "$name" "${where[@]}"
  '--format=value(state.state)')
remove=("${queue[@]}" delete "$name" "${where[@]}" --force --quiet)

# A run that an earlier connection left behind is stopped, which saves it.
container=shared_tfm
train="sudo docker stop --time=120 $container >/dev/null 2>&1;"
train+=" sudo docker rm --force $container >/dev/null 2>&1;"
train+=" exec $(quoted sudo docker run --name="$container" --privileged \
  --network=host --volume="$mount:$mount" "$image" \
  train --distributed "${flags[@]}")"

on_all() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
    --command="$1"
}

state() {
  "${look[@]}" 2>/dev/null || echo ABSENT
}

# Queues for the TPU unless it is there or queued for, and waits.
get() {
  if [ -n "$dry_run" ]; then
    run "${create[@]}"
    run "${look[@]}"
    return
  fi
  case $(state) in
    ABSENT) "${create[@]}" ;;
    FAILED | SUSPEND*) "${remove[@]}" && "${create[@]}" ;;
  esac
  local now
  while true; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      ABSENT | FAILED | SUSPEND*) die "the TPU $name is $now" ;;
    esac
    echo "waiting for the TPU $name, which is $now" >&2
    sleep 30
  done
}

while true; do
  get
  [ -z "$prepare" ] || on_all "$prepare"
  status=0
  on_all "$train" || status=$?
  # Done; or bad input, or diverged, which is no better the second time.
  case $status in
    0 | 2 | 3) break ;;
  esac
  [[ $(state) == SUSPEND* ]] || break # else it was taken away
done
echo "# it is yours until: $(quoted "${remove[@]}")"
exit "$status"
