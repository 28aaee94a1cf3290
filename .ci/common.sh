# Shared by the scripts of this folder, which source it. Each works in a new folder,
# "$work", that is removed at the end, on a copy of the source tree in "$work/clone",
# as pip, pytest and the experiments write next to the files that they read.
set -euo pipefail
exec </dev/null

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/clone" "$work/tmp"
(cd "$root" && git ls-files -z --cached --others --exclude-standard |
    xargs -0 cp --parents --target-directory="$work/clone")
if [ -d "$root/../shared" ]; then  # Data of some tests, which are otherwise skipped.
    ln -s "$(cd "$root/../shared" && pwd)" "$work/shared"
fi
cd "$work/clone"

export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
export PYTHONNOUSERSITE=1 TF_CPP_MIN_LOG_LEVEL=3
# Where these keep their files.
export TMPDIR=$work/tmp KERAS_HOME=$work/keras MPLCONFIGDIR=$work/matplotlib
export PYTEST_ADDOPTS="-rs"  # Skipped tests are named, with the reason.
unset PYTHONPATH KERAS_BACKEND VIRTUAL_ENV

step() { printf '\n== %s (after %d s)\n' "$*" "$SECONDS"; }

# new_environment NAME: an empty virtual environment, from now on the one in use.
original_path=$PATH
new_environment() {
    local python=${PYTHON:-python3}
    PATH=$original_path
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "Python 3.11 or later is needed: PYTHON=python3.11 $0"; exit 1; }
    "$python" -m venv "$work/$1"
    PATH=$work/$1/bin:$PATH
    hash -r
}

# on_top_of NAME: the environment in use also sees the packages of that one.
on_top_of() {
    local path='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$work/$1/bin/python" -c "$path" > "$(python -c "$path")/below.pth"
}

# packages: the names of all installed packages, one per line.
packages() { PIP_QUIET=0 pip list --format=freeze 2>/dev/null | sed 's/[=@ ].*//'; }

# absent NAME...: fails if one of these packages is installed.
absent() {
    local name
    for name; do
        if packages | grep -ix "$name"; then
            echo "$name must not be installed here."
            return 1
        fi
    done
}

# readme SECTION N: the Nth block of commands of README.md's section, as printed.
readme() {
    awk -v section="## $1" -v n="$2" '
        /^## / { inside = $0 == section }
        /^```bash$/ && inside { block++; next }
        /^```$/ { if (block == n) exit; next }
        inside && block == n { print; found = 1 }
        END { exit !found }' README.md
}
