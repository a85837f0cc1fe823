# shellcheck shell=bash
# What the scripts beside this one have in common.

dry_run=
flags=()

die() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the top of the script.
usage() {
  sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
}

# parse 'REQUIRED ...' 'OPTIONAL ...' "$@": every --name=value into the variable
# `name` (dashes are underscores), and what is behind `--` into `flags`.
parse() {
  local required=$1 known=" $1 $2 " word
  shift 2
  while [ $# -gt 0 ]; do
    word=${1%%=*}
    word=${word#--}
    word=${word//-/_}
    case $1 in
      --help) usage; exit ;;
      --dry-run) dry_run=1 ;;
      --) shift; flags=("$@"); break ;;
      --*=*)
        [[ $known == *" $word "* ]] || die "unknown option $1 (see $0 --help)"
        printf -v "$word" %s "${1#*=}"
        ;;
      *) die "what is $1? Options are --name=value (see $0 --help)" ;;
    esac
    shift
  done
  for word in $required; do
    [ -n "${!word}" ] || die "--${word//_/-}= is missing (see $0 --help)"
  done
}

# Checks that `flags` are what `python -m shared_tfm train` needs.
need_training() {
  local wanted
  for wanted in --config --workdir; do
    [[ " ${flags[*]-} " == *" $wanted="* ]] ||
      die "behind -- are the flags of training; $wanted= is missing"
  done
}

# need_like NAME REGEX WHAT: the variable NAME is as it has to be.
need_like() {
  [[ ${!1} =~ ^($2)$ ]] || die "--${1//_/-} must be $3, got '${!1}'"
}

# The words of a command, as a shell reads them.
quoted() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# Runs a command, or says it.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    "$@"
  fi
}
