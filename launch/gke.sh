#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster (kubectl must point at it; it needs the JobSet controller).
#
#   bash launch/gke.sh start NAME --image IMAGE --topology TOPOLOGY [OPTIONS] -- CREM-TRAIN-ARGUMENTS…
#   bash launch/gke.sh start crem --image us-docker.pkg.dev/p/r/crem:1 --topology v5e:4x4 \
#       --bring gs://my-bucket/models=models --bring gs://my-bucket/data=data -- \
#       --config=configs/qwen2_vl_2b.py --workdir=gs://my-bucket/crem-2b
#
# VERBS
#   start    apply the manifest and follow      render   print the manifest
#   logs     follow the run until it ends       status   of the JobSet and its pods
#   stop     end it: every pod gets SIGTERM and saves; `start` goes on from there
#
# OPTIONS
#   --topology T   v4:…, v5e:4x4, v5p:2x2x4, v6e:16x16, …: chip and shape of a slice
#   --image IMAGE  built from launch/Dockerfile
#   --bring gs://BUCKET/FOLDER=DIR  mounts the folder, read-only, at DIR, which the config names (in
#                  the checkout, unless it starts with /); may be repeated. The cluster needs the
#                  Cloud Storage FUSE CSI driver, and the service account may read the bucket
#   --slices N     default 1        --restarts N   after preemptions (default 10)
#   --service-account A             the one that may write the bucket (default: default)
#   --namespace N                   default: as kubectl is configured
#   --dry-run      print the commands and run nothing
#
# For XPK, `xpk workload create --workload NAME --tpu-type … --docker-image IMAGE --command "crem
# train …"` does the same. Exit codes: 0 trained, 1 failed: the log of the pod that failed is shown.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
    [[ "${1:-}" != -h && "${1:-}" != --help ]] || show_usage
    local verbs=" start render logs status stop "
    [[ -n "${1:-}" && "$verbs" == *" $1 "* ]] || refuse "expected a verb, got '${1:-}'"
    verb="$1" name="${2:-}"
    [[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
        refuse "expected the name of a run (at most 40 letters, digits, dashes), got '$name'"
    shift 2
    image="" topology="" slices=1 restarts=10 service_account=default namespace=""
    brought=() arguments=()
    while [[ $# -gt 0 ]]; do
        case "$1" in
            --image | --topology | --slices | --restarts | --namespace)
                need_value "$@" && printf -v "${1#--}" '%s' "$2" && shift 2
                ;;
            --service-account) need_value "$@" && service_account="$2" && shift 2 ;;
            --bring) need_bring "$@" && brought+=("$2") && shift 2 ;;
            --dry-run) DRY_RUN=1 && shift ;;
            -h | --help) show_usage ;;
            --) shift && arguments=("$@") && break ;;
            *) refuse "unknown option $1; arguments of crem train come after --" ;;
        esac
    done
    for number in slices restarts; do
        [[ "${!number}" =~ ^(0|[1-9][0-9]{0,5})$ ]] ||
            refuse "--$number '${!number}' is no whole number below 1000000"
    done
    [[ "$slices" != 0 ]] || refuse "--slices '0' is no number of slices"
    local label='[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?'
    [[ "$service_account" =~ ^$label(\.$label)*$ ]] ||
        refuse "--service-account '$service_account' is no name of Kubernetes (RFC 1123)"
    [[ -z "$namespace" || "$namespace" =~ ^$label$ ]] ||
        refuse "--namespace '$namespace' is no name of Kubernetes (RFC 1123)"
    [[ -z "$image" || "$image" =~ ^[A-Za-z0-9][-A-Za-z0-9._:/@]*$ ]] ||
        refuse "--image '$image' is no name of an image"
    where=()
    [[ -z "$namespace" ]] || where+=(--namespace "$namespace")
    "$verb"
}

# The manifest with this run's values; JSON is YAML, so that arguments keep every quote in them.
render() {
    [[ -n "$image" ]] || refuse "$verb needs --image"
    [[ ${#arguments[@]} -gt 0 ]] || refuse "expected arguments of crem train after --"
    local chip="${topology%%:*}" shape="${topology#*:}" accelerator host chips hosts
    case "$chip" in
        v4) accelerator=tpu-v4-podslice host=4 ;;
        v5e) accelerator=tpu-v5-lite-podslice host=4 ;;
        v5p) accelerator=tpu-v5p-slice host=4 ;;
        v6e) accelerator=tpu-v6e-slice host=4 ;;
        *) refuse "--topology '$topology' is not v4, v5e, v5p or v6e, a colon and a shape" ;;
    esac
    [[ "$topology" == *:* && "$shape" =~ ^[0-9]+(x[0-9]+)+$ ]] ||
        refuse "--topology '$topology' has no shape such as 4x4"
    chips=$((${shape//x/*}))
    [[ $chips -ge $host ]] || host=$chips
    hosts=$((chips / host))
    NAME="$name" RESTARTS="$restarts" SLICES="$slices" HOSTS="$hosts" CHIPS="$host" \
        SERVICE_ACCOUNT="$service_account" ACCELERATOR="$accelerator" TOPOLOGY="$shape" \
        IMAGE="$image" python3 -c '
import json, os, string, sys
numbers = ("RESTARTS", "SLICES", "HOSTS", "CHIPS")
values = {k: v if k in numbers else json.dumps(v) for k, v in os.environ.items()}
count = int(sys.argv[1])
brought, arguments = sys.argv[2 : 2 + count], sys.argv[2 + count :]
volumes, mounts = [], []
for number, each in enumerate(brought):
    url, _, place = each.rpartition("=")
    bucket, _, folder = url.removeprefix("gs://").rstrip("/").partition("/")
    options = f"implicit-dirs,only-dir={folder}" if folder else "implicit-dirs"
    attributes = {"bucketName": bucket, "mountOptions": options}
    driver = {"driver": "gcsfuse.csi.storage.gke.io", "readOnly": True}
    volumes.append({"name": f"brought-{number}", "csi": driver | {"volumeAttributes": attributes}})
    place = os.path.join("/crem_jax", place)  # where launch/Dockerfile puts the checkout
    mounts.append({"name": f"brought-{number}", "mountPath": place, "readOnly": True})
values["ARGUMENTS"] = json.dumps(arguments)
values["VOLUMES"], values["MOUNTS"] = json.dumps(volumes), json.dumps(mounts)
values["ANNOTATIONS"] = json.dumps({"gke-gcsfuse/volumes": "true"} if brought else {})
text = open("launch/gke_jobset.yaml").read()
body = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
print(string.Template(body).substitute(values), end="")
' "${#brought[@]}" ${brought[@]+"${brought[@]}"} "${arguments[@]}"
}

start() {
    local manifest
    manifest="$(render)"
    if [[ -n "${DRY_RUN:-}" ]]; then
        show kubectl ${where[@]+"${where[@]}"} apply --filename - && echo "$manifest"
    else
        show kubectl ${where[@]+"${where[@]}"} apply --filename -
        kubectl ${where[@]+"${where[@]}"} apply --filename - <<<"$manifest"
    fi
    logs
}

logs() {
    local first="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
    local state
    if [[ -n "${DRY_RUN:-}" ]]; then
        run kubectl ${where[@]+"${where[@]}"} logs --follow --selector "$first" --tail=-1
        return
    fi
    while true; do
        # Ends when the pod does; after a restart there is another one.
        kubectl ${where[@]+"${where[@]}"} logs --follow --selector "$first" --tail=-1 || true
        state="$(terminal_state)"
        case "$state" in
            *Completed*) return 0 ;;
            *Failed*) break ;;
        esac
        sleep "${CREM_POLL_SECONDS:-20}"
    done
    echo "error: the run $name has failed; the log of its failed pods:" >&2
    for pod in $(failed_pods); do
        echo "--- $pod" >&2
        kubectl ${where[@]+"${where[@]}"} logs "$pod" --tail=40 >&2 || true
    done
    exit 1
}

terminal_state() {
    kubectl ${where[@]+"${where[@]}"} get jobset "$name" \
        --output 'jsonpath={.status.terminalState}'
}

failed_pods() {
    kubectl ${where[@]+"${where[@]}"} get pods --selector "jobset.sigs.k8s.io/jobset-name=$name" \
        --field-selector status.phase=Failed --output name
}

status() {
    run kubectl ${where[@]+"${where[@]}"} get jobset "$name" --output wide
    run kubectl ${where[@]+"${where[@]}"} get pods --selector "jobset.sigs.k8s.io/jobset-name=$name"
}

stop() { run kubectl ${where[@]+"${where[@]}"} delete jobset "$name"; }

main "$@"
