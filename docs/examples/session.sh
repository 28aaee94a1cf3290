#!/usr/bin/env bash
# The session of docs/saving.md: train here, export, continue elsewhere, come back.
# Makes the folder runs/session, or the one that it is given, and writes into it.
# PYTHON=... takes another Python than `python`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
export TF_CPP_MIN_LOG_LEVEL=3
folder=${1:-runs/session}
mkdir -p "$(dirname "$folder")"
mkdir "$folder"  # A new one.
cd "$folder"
cli() { "$python" -m tensorflow.python.tools.saved_model_cli "$@"; }
output() { cli show --dir exported --tag_set serve --signature_def "$1" |
    grep -A 3 "outputs\['$2'\]" | sed -n 's/ *name: //p'; }

echo '$ python train.py exported'
"$python" "$here/train.py" exported

echo '$ gcc train.c ...; ./train exported 4 by-c ...'
lib=$("$python" -c 'import os, tensorflow as tf; print(os.path.dirname(tf.__file__))')
gcc -O2 "$here/train.c" -I "$lib/include" "$lib"/libtensorflow_cc.so.2 \
    "$lib"/libtensorflow_framework.so.2 -Wl,-rpath,"$lib" -o train
./train exported 4 by-c "$(output train loss)" "$(output save step)"

echo '$ saved_model_cli run ... --signature_def train_from'
x='[[0,.375,.75,.125],[.625,0,.375,.75],[.25,.625,0,.375],[.875,.25,.625,0],'
x+='[.5,.875,.25,.625],[.125,.5,.875,.25],[.75,.125,.5,.875],[.375,.75,.125,.5]]'
cli run --dir exported --tag_set serve --signature_def train_from \
    --input_exprs "x=$x;y=[0,1,2,0,1,2,0,1];path='by-c';to='by-cli'" |
    grep -A 1 'Result for'

echo '$ python train.py exported by-cli'
"$python" "$here/train.py" exported by-cli
