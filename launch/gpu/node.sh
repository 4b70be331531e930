#!/usr/bin/env bash
# Trains on all GPUs of this machine and goes on after a saved stop (exit code 75).
#   bash launch/gpu/node.sh --config=configs/eight_gpus.py --config.data.root=DIR \
#     --config.model.backbone_weights=swin_tiny_patch4_window7_224.pth --workdir=DIR
set -euo pipefail
# 75: saved after SIGTERM, or another process is gone; 134: jax ended this one (SIGABRT), because
# another process is gone.
restart_codes=" 75 134 "
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}

if [[ $# -eq 0 ]]; then
  echo "usage: node.sh FLAGS of python -m semsam_jax.main" >&2
  exit 2
fi
if ! command -v nvidia-smi >/dev/null; then
  echo "error: nvidia-smi not found; install the NVIDIA driver (README.md)" >&2
  exit 2
fi
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$python" - <<'PY'
import sys

import jax

if jax.default_backend() != "gpu":
    sys.exit("error: jax sees no GPU; pip install -e '.[train,cuda]' (README.md)")
print(f"jax {jax.__version__} on {jax.device_count()} x {jax.devices()[0].device_kind}")
PY

while true; do
  code=0
  # The shell hands a signal on, so that the run can save; then it ends with code 75.
  "$python" -m semsam_jax.main "$@" &
  child=$!
  is_asked=no
  trap 'is_asked=yes; kill -TERM "$child"' TERM INT
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  trap - TERM INT
  [[ $restart_codes == *" $code "* && $is_asked == no ]] || exit "$code"
  echo "stopped with code $code; starting again in 10 s"
  sleep 10
done
