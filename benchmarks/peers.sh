#!/bin/sh
# Creates the virtual environments of the libraries that kbert is compared with, in benchmarks/.peers.
# Takes a few minutes and about 5 GB; `sh benchmarks/peers.sh hf` creates one of them.
set -eu
cd "$(dirname "$0")"

make_peer() {
    name=$1
    shift
    python3 -m venv ".peers/$name"
    ".peers/$name/bin/python" -m pip install "$@"
}

for peer in ${*:-hf keras_hub openvino}; do
    case $peer in
    # torch is pinned, because its newest release has no CPU-only build
    hf) make_peer hf torch==2.13.0 transformers==5.23.0 numpy==2.4.6 ;;
    keras_hub) make_peer keras_hub tensorflow==2.21.0 tensorflow-text==2.21.1 keras==3.15.1 keras-hub==0.32.0 ;;
    openvino) make_peer openvino openvino==2026.4.1 torch==2.13.0 transformers==5.23.0 numpy==2.4.6 ;;
    *)
        echo "unknown library: $peer; use hf, keras_hub or openvino" >&2
        exit 1
        ;;
    esac
done
