#!/usr/bin/env bash
# What pod.py runs on each TPU worker: mount | install | start | status | log | stop.
set -euo pipefail
home="$HOME/semsam_jax"
state="$HOME/.semsam_jax_job"
# 75: saved after SIGTERM, or another process is gone; 134: jax ended this one (SIGABRT), because
# another process is gone. Run the same command to resume.
restart_codes=" 75 134 "

mount_bucket() {
  if ! command -v gcsfuse >/dev/null; then
    release="gcsfuse-$(lsb_release -c -s)"
    echo "deb https://packages.cloud.google.com/apt $release main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
      sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
    sudo apt-get update -q
    sudo apt-get install -q -y gcsfuse
  fi
  mkdir -p "$HOME/runs"
  mountpoint -q "$HOME/runs" || gcsfuse --implicit-dirs "$1" "$HOME/runs"
}

install() {
  # The images bring an older Python than the project needs; uv fetches its own.
  python3 -m pip install -q --user uv
  python3 -m uv venv -q --allow-existing --python 3.12 "$HOME/venv"
  python3 -m uv pip install -q --python "$HOME/venv/bin/python" -e "${home}[train,tpu]"
  "$HOME/venv/bin/python" -c 'import libtpu' # the devices themselves want all workers at once
}

job() {
  cd "$home"
  while true; do
    code=0
    "$HOME/venv/bin/python" -m semsam_jax.main "$@" &
    echo "$!" >"$state/pid"
    wait "$!" || code=$?
    [[ $restart_codes == *" $code "* ]] || break
    [[ ! -e $state/stop ]] || break
    echo "stopped with code $code; starting again in 10 s"
    sleep 10
  done
  echo "$code" >"$state/code"
}

case "${1:-}" in
  mount) mount_bucket "$2" ;;
  install) install ;;
  start)
    shift
    mkdir -p "$state"
    rm -f "$state/code" "$state/stop"
    setsid nohup bash "$0" job "$@" >>"$state/log" 2>&1 </dev/null &
    echo "started; log in $state/log"
    ;;
  job)
    shift
    job "$@"
    ;;
  status)
    if [[ ! -e $state/code ]]; then
      echo running
    elif [[ $(<"$state/code") -eq 0 ]]; then
      echo "done"
    else
      echo "failed $(<"$state/code")"
    fi
    ;;
  log) tail -n "${2:-40}" "$state/log" ;;
  stop)
    touch "$state/stop"
    kill -TERM "$(<"$state/pid")"
    ;;
  *)
    echo "usage: worker.sh mount BUCKET | install | start FLAGS | status | log [LINES] | stop"
    exit 2
    ;;
esac
