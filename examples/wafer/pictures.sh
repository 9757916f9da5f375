#!/usr/bin/env bash
# The pictures of docs/wafer.md, made from the examples: bash examples/wafer/pictures.sh
set -e
images=$(cd "$(dirname "$0")/../../docs/img" && pwd)
examples=$(cd "$(dirname "$0")" && pwd)
cd "$(mktemp -d)"

# draw NAME OPTIONS...: compile and run an example, draw its routes and what happened
draw() {
  local name=$1
  shift
  # The events of single PEs, which the timelines show, are noted by the reference engine.
  openwafer wafer trace --png "$images/$name-trace.png" --title "$name" \
    "$examples/$name/run.py" "$@"
  openwafer wafer info out --png "$images/$name-routes.png" --title "$name" > /dev/null
}

draw gemv
draw stencil --steps=3
draw summa --P=4 --M=16 --K=8 --N=8

# All of SUMMA, without timelines.
openwafer wafer trace --png "$images/summa-16x16.png" --title "summa" "$examples/summa/run.py"
