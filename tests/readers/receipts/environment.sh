#!/usr/bin/env bash
# Makes the environment of a reader, with the versions that receipts were taken with:
#
#     tests/readers/gptq/environment.sh gptqmodel|vllm|llmcompressor FOLDER      (FOLDER/gptqmodel, ...; 1.5 to 3.5 GB each)
#
# torch comes first and by itself: pip must be set up to take a build for the CPU (vLLM's runs with no other), or takes CUDA's.
# The others come as listed and without what they ask for: that is listed, too, and vLLM asks for things that break it.
set -euo pipefail
name=$1 folder=$2
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3}" -m venv "$folder/$name"
pip=("$folder/$name/bin/python" -m pip --disable-pip-version-check --quiet install)
"${pip[@]}" torch==2.13.0 'setuptools<85' wheel
"${pip[@]}" --no-deps --no-build-isolation -r "$here/requirements/$name.txt"
case $name in
  gptqmodel) modules="gptqmodel, optimum, transformers" ;;
  vllm) modules="vllm" ;;
  llmcompressor) modules="llmcompressor" ;;
esac
"$folder/$name/bin/python" -c "import $modules" 2>/dev/null
echo "$folder/$name"
