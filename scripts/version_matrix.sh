#!/usr/bin/env bash
# Runs the library's tests with the oldest and newest versions of Python, TensorFlow,
# Keras, JAX and PyTorch, each row in a new environment, and notes the outcome in
# docs/versions.md. The oldest are the lower bounds in pyproject.toml.
#   scripts/version_matrix.sh                     # all rows
#   scripts/version_matrix.sh "3.12*" "*jax*"     # those of which a pattern is the name
#   scripts/version_matrix.sh --list              # their names, as a JSON list
# Needs python3.11, python3.12 and python3.13 in the PATH. A row takes some minutes.
. "$(dirname "$0")/../.ci/common.sh"

# Python | backend | which versions | what differs from the newest
rows='3.11|tensorflow|oldest|oldest
3.11|tensorflow|oldest TensorFlow, newest Keras|tensorflow
3.11|tensorflow|newest TensorFlow, oldest Keras|keras
3.11|tensorflow|newest|
3.12|tensorflow|oldest|oldest
3.12|tensorflow|newest|
3.13|tensorflow|oldest TensorFlow for it|tensorflow==2.20.0
3.13|tensorflow|newest|
3.11|jax|oldest|oldest
3.12|jax|newest|
3.13|jax|newest|
3.11|torch|oldest|oldest
3.11|torch|newest|
3.13|torch|newest|'
tests=(svag_tf/optimizers svag_tf/rules.py tests/optimizers/test_fit.py
    tests/optimizers/test_saving.py tests/optimizers/test_table.py
    tests/test_final_weights.py tests/test_import.py tests/test_internals.py
    tests/test_rules.py)
page=$root/docs/versions.md

# lower_bounds [NAME]: the oldest versions that pyproject.toml allows, as constraints.
lower_bounds() {
    python - "$@" <<'END_OF_PYTHON'
import re, sys, tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = [*project["dependencies"], *(r for e in extras if e != "gpu" for r in extras[e])]
for name, bound in re.findall(r"^([\w-]+)>=([\w.]+)", "\n".join(wanted), re.M):
    if len(sys.argv) == 1 or name == sys.argv[1]:
        print(f"{name}=={bound}.*" if bound.count(".") < 2 else f"{name}=={bound}")
END_OF_PYTHON
}

# note NAME VERSIONS OUTCOME: writes a row, or replaces the one of that name.
note() {
    local line="| $1 | $2 | $3 |"
    if grep -qF "| $1 |" "$page"; then
        awk -v start="| $1 |" -v line="$line" \
            'index($0, start) == 1 { $0 = line } { print }' "$page" > "$work/page"
        cat "$work/page" > "$page"
    else
        echo "$line" >> "$page"
    fi
}

failed=0
names=()
while IFS='|' read -r -u 3 version backend which differs; do
    name="$version, $backend, $which"
    names+=("\"$name\"")
    if [ "${1-}" = --list ]; then continue; fi
    chosen=
    for pattern in "${@:-*}"; do
        # shellcheck disable=SC2053  # A pattern, not a string.
        if [[ $name == $pattern ]]; then chosen=yes; fi
    done
    if [ -z "$chosen" ]; then continue; fi

    step "$name"
    PYTHON=python$version new_environment row
    case $differs in
        "") : ;;
        oldest) lower_bounds ;;
        *==*) echo "$differs" ;;
        *) lower_bounds "$differs" ;;
    esac > "$work/constraints"
    sed '/"tensorflow>=/d' pyproject.toml > "$work/project" # Each row names its backend.
    cp "$work/project" pyproject.toml
    outcome="could not be installed" versions=
    if pip install -c "$work/constraints" ".[test]" "$backend"; then
        versions=$(PIP_QUIET=0 pip list --format=freeze |
            grep -iE "^($backend|keras|numpy)==" | tr '\n' ' ' | sed 's/==/ /g; s/ $//')
        log=$work/log
        KERAS_BACKEND=$backend python -m pytest -n 2 -q "${tests[@]}" 2>&1 | tee "$log" ||
            failed=1
        outcome=$(grep -E '^(=+ )?[0-9]+ (passed|failed)' "$log" | tail -1 |
            sed -E 's/=+ ?//g; s/, [0-9]+ warnings?//; s/ in .*//')
    else
        failed=1
    fi
    note "$name" "$versions" "${outcome:-the tests could not run}"
    rm -r "$work/row"
done 3<<< "$rows"
if [ "${1-}" = --list ]; then (IFS=,; echo "[${names[*]}]"); fi
exit $failed
