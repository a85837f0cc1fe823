#!/usr/bin/env bash
# Builds the image that TPU pods and Kubernetes run.
#
#   launch/image.sh [--dry-run] --tag=REGISTRY/NAME:TAG
#     [--extra=cpu|cuda12|cuda13|tpu] [--push=yes]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

tag='' extra=cpu push=no
parse 'tag' 'extra push' "$@"
need_like extra 'cpu|cuda12|cuda13|tpu' 'cpu, cuda12, cuda13 or tpu'
need_like push 'yes|no' 'yes or no'

root=$(cd "$(dirname "$0")/.." && pwd)
run docker build --file="$root/launch/Dockerfile" --build-arg="EXTRA=$extra" \
  --tag="$tag" "$root"
if [ "$push" = yes ]; then
  run docker push "$tag"
fi
