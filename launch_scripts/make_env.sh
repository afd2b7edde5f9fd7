#!/usr/bin/env bash
# Make the environment: a virtual environment in DIR (default .venv) with everything pinned.
#
#     launch_scripts/make_env.sh [DIR]
#
# PYTHON=python3.12   which Python (3.11 or 3.12); default: the first on the PATH that fits
# TORCH=cpu|cuda      which torch; default: cuda where `nvidia-smi` sees a GPU, else cpu. The CPU build is asked for by
#                     its own version (2.13.0+cpu), so that a machine without a GPU can never be given the CUDA one.
set -euo pipefail
cd "$(dirname "$0")/.."
env=${1:-.venv}
torch_version=2.13.0

# The stamp holds what was asked for: an environment made for other pins, or cut off half-way, is made anew.
# The project itself is installed editable: when only pyproject.toml changed, that install alone is repeated.
wanted=$(cat requirements.txt requirements-dev.txt constraints.txt launch_scripts/make_env.sh | cksum; echo "${TORCH:-}" "${PYTHON:-}" "$PWD")
project=$(cksum < pyproject.toml)
if [ -x "$env/bin/codemix" ] && [ "$(cat "$env/.made" 2>/dev/null)" = "$wanted" ]; then
  if [ "$(cat "$env/.project" 2>/dev/null)" != "$project" ]; then
    "$env/bin/python" -m pip --disable-pip-version-check --quiet install --no-deps -e .
    echo "$project" > "$env/.project"
  fi
  exit 0
fi

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
python=
for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
  if fits "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "make_env: needs Python 3.11 or 3.12 (looked for: ${PYTHON:-python3 python3.12 python3.11}); install one or set PYTHON=" >&2
  exit 2
fi

kind=${TORCH:-}
if [ -z "$kind" ]; then
  kind=cpu
  if [[ $(nvidia-smi -L 2>/dev/null || true) == *GPU* ]]; then kind=cuda; fi
fi

echo "make_env: $("$python" --version), torch $torch_version ($kind), into $env" >&2
rm -f "$env/.made"
"$python" -m venv --clear "$env"
pip=("$env/bin/python" -m pip --disable-pip-version-check --quiet)

if [ "$kind" = cuda ]; then
  "${pip[@]}" install "torch==$torch_version"
elif [ "$(uname -s)" = Darwin ]; then
  "${pip[@]}" install "torch==$torch_version"    # on a Mac there is no CUDA build to avoid
else
  # First where pip is set up to look (a local wheel, a mirror), then PyTorch's own index of CPU builds.
  "${pip[@]}" install "torch==$torch_version+cpu" 2>/dev/null ||
    "${pip[@]}" install --index-url https://download.pytorch.org/whl/cpu "torch==$torch_version+cpu" || {
      echo "make_env: no CPU build of torch $torch_version for this Python was found; name an index that has one with PIP_FIND_LINKS=, or set TORCH=cuda" >&2
      exit 2
    }
fi
# DeepSpeed comes as source: no operator is compiled at install, none is needed on a CPU.
DS_BUILD_OPS=0 "${pip[@]}" install -r requirements.txt -r requirements-dev.txt
if [ "$kind" = cpu ] && "$env/bin/python" -c 'import torch, sys; sys.exit(torch.version.cuda is None)'; then
  echo "make_env: a CUDA build of torch got in although a CPU build was asked for" >&2
  exit 1
fi
echo "$project" > "$env/.project"
echo "$wanted" > "$env/.made"
