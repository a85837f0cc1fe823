#!/usr/bin/env bash
# Trains on Kubernetes by a JobSet: TPUs of GKE, or GPUs.
#
#   launch/jobset.sh [--dry-run] --kind=tpu|gpu --name=NAME --image=IMAGE
#     --hosts=N --chips=PER_HOST --claim=CLAIM --mount=FOLDER
#     [--accelerator=TYPE --topology=AxB] [--restarts=N]
#     -- --config=... --workdir=FOLDER/...
#
# CLAIM is a PersistentVolumeClaim that all pods may write; they have it at
# FOLDER. A TPU slice needs the two labels of its nodes, as in
# --accelerator=tpu-v5-lite-podslice --topology=4x4.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# shellcheck disable=SC2034  # most are read by name, below
{
  kind='' name='' image='' hosts='' chips='' claim='' mount=''
  accelerator='' topology='' restarts=20
}
parse 'kind name image hosts chips claim mount' \
  'accelerator topology restarts' "$@"
need_training
label='[a-z0-9]([-a-z0-9]*[a-z0-9])?'
need_like kind 'tpu|gpu' 'tpu or gpu'
need_like name "$label" 'small letters, digits and dashes'
need_like claim "$label" 'small letters, digits and dashes'
need_like image '[A-Za-z0-9][-A-Za-z0-9._/:@]*' 'the name of an image'
need_like mount '/[-A-Za-z0-9._/]+' 'an absolute path'
for number in hosts chips restarts; do
  need_like "$number" '[1-9][0-9]*' 'a number'
done
if [ "$kind" = tpu ]; then
  need_like accelerator "$label" 'the label of TPU nodes'
  need_like topology '[0-9]+(x[0-9]+)+' 'such as 4x4'
fi

# The flags as a list in YAML. Kubernetes reads $$ as $.
args=
for flag in "${flags[@]}"; do
  [[ $flag != *[[:cntrl:]]* ]] || die 'a flag holds a control character'
  flag=${flag//\\/\\\\}
  flag=${flag//\"/\\\"}
  args+=", \"${flag//\$/\$\$}\""
done

text=$(<"$(dirname "$0")/jobset_$kind.yaml")
for field in name image hosts chips claim mount accelerator topology restarts; do
  text=${text//"\$${field^^}"/"${!field}"}
done
text=${text//", \$FLAGS"/"$args"}

if [ -n "$dry_run" ]; then
  printf "kubectl apply --filename=- <<'END'\n%s\nEND\n" "$text"
else
  kubectl apply --filename=- <<<"$text"
fi
