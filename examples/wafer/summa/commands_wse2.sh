#!/usr/bin/env bash
set -e
cslc layout.csl --arch=wse2 --fabric-dims=11,6 --fabric-offsets=4,1 --params=P:4,M:8,K:8,N:8 -o out --memcpy --channels=1
cs_python run.py --name out
