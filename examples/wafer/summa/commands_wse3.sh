#!/usr/bin/env bash
set -e
cslc layout.csl --arch=wse3 --fabric-dims=23,18 --fabric-offsets=4,1 --params=P:16,M:64,K:16,N:32 -o out --memcpy \
  --channels=1
cs_python run.py --name out
