#!/bin/bash
# A Cloud TPU VM: create, run, resume after a preemption, delete.
#   NAME=simclr ZONE=us-central2-b BUCKET=my-bucket deploy/tpu/tpu_vm.sh create|run|resume|delete [FLAGS of run.py]
# run and resume take the same flags. The model directory is in the bucket, which is mounted by gcsfuse, so that it
# survives the VM. GCLOUD="echo gcloud" prints the commands instead of running them.
set -euo pipefail
: "${NAME:?}" "${ZONE:?}"
ACCELERATOR=${ACCELERATOR:-v4-8} VERSION=${VERSION:-tpu-ubuntu2204-base} RUN=${RUN:-r50}
read -ra gcloud <<<"${GCLOUD:-gcloud}"

tpu() { "${gcloud[@]}" compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }

create() {
  : "${BUCKET:?}"
  tpu create --accelerator-type="$ACCELERATOR" --version="$VERSION" --spot
  "${gcloud[@]}" compute tpus tpu-vm scp --recurse . "$NAME":simclrv2 --zone="$ZONE" --worker=all
  tpu ssh --worker=all --command="
    set -e
    cd simclrv2 && python3.11 -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/pip uninstall -y tensorflow
    .venv/bin/pip install 'tensorflow-tpu==2.20.*' -f https://storage.googleapis.com/libtpu-tf-releases/index.html
    mkdir -p runs && gcsfuse --implicit-dirs --only-dir=runs $BUCKET runs"
}

run() { # on the first host; for a larger slice set TPU_NAME=PROJECT/ZONE/NAME, so that TensorFlow finds the other hosts
  local flags=""
  (($# == 0)) || printf -v flags ' %q' "$@"
  tpu ssh --worker=0 --command="
    cd simclrv2 && .venv/bin/python run.py --mode=pretrain --use_tpu --tpu_name=${TPU_NAME:-local} --model_dir=runs/$RUN$flags"
}

resume() { # a preempted VM cannot be restarted; it may also be gone
  local state
  state=$(tpu describe --format="value(state)") || state=GONE
  if [[ $state != READY ]]; then
    [[ $state == GONE ]] || delete
    create
  fi
  run "$@"
}

delete() { tpu delete --quiet; }

case ${1:-} in
  create | run | resume | delete) "$@" ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
