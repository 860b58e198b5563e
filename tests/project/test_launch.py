"""The launch scripts against pretended `gcloud`, `kubectl`, `sbatch` and `crem`: what they call, in
which order and with which words, and what they do when something fails.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml

from crem_jax.train.run.recipe import git_commit

ROOT = Path(__file__).parents[2]
FAKES = ("gcloud", "kubectl", "sbatch", "sacct", "scancel", "scontrol", "srun", "crem")
FAKE = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path
place, name = Path(os.environ["FAKES"]), Path(sys.argv[0]).name
words = [name, *sys.argv[1:]]
if "scp" in words:  # what travels is gone afterwards
    import shutil
    shutil.copy(next(word for word in words if word.endswith("gz") and "/" in word), place)
stdin = sys.stdin.read() if "apply" in words else ""
with (place / "calls.jsonl").open("a") as file:
    file.write(json.dumps([words, stdin]) + "\\n")
answers = json.loads((place / "answers.json").read_text())
for number, answer in enumerate(answers):
    times = place / f"times-{{number}}"
    done = int(times.read_text()) if times.exists() else 0
    if all(part in " ".join(words) for part in answer["to"]) and done < answer.get("times", 999):
        times.write_text(str(done + 1))
        print(answer.get("out", ""), flush=True)
        if "sleep" in answer:
            import signal
            signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
            time.sleep(answer["sleep"])
        sys.exit(answer.get("code", 0))
"""
"""Writes down how it was called and answers as `answers.json` says."""

TRICKY = ["--config=configs/my file.py", '--config.note=it\'s "quoted" $HOME `ls` *; a\\b']
BUCKET = "--workdir=gs://bucket/run"


class Machine:
    """A PATH with the pretended commands on it."""

    def __init__(self, place: Path):
        self.place, self.bin = place, place / "bin"
        self.bin.mkdir(parents=True)
        for name in FAKES:
            (self.bin / name).write_text(FAKE)
            (self.bin / name).chmod(0o755)
        venv = place / "venv" / "bin"
        venv.mkdir(parents=True)
        (venv / "activate").write_text("")
        # A checkout of its own, so that logs and remembered arguments land there.
        self.root = place / "crem_jax"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        subprocess.run(["git", "init", "-q", self.root], check=True)
        subprocess.run(["git", "-C", self.root, "add", "launch"], check=True)
        author = ("-c", "user.name=x", "-c", "user.email=x@x")
        subprocess.run(["git", "-C", self.root, *author, "commit", "-qm", "x"], check=True)
        self.answers()

    def answers(self, *answers: dict) -> None:
        (self.place / "answers.json").write_text(json.dumps(answers))

    def start(self, script: str, *words: str, **environment: str) -> subprocess.Popen:
        environment = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "FAKES": str(self.place),
            "CREM_VENV": str(self.place / "venv"),
            "CREM_POLL_SECONDS": "0.01",
            **environment,
        }
        command = ["bash", f"launch/{script}", *words]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # As at a terminal; what the tests run in may ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(script, *words, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    @property
    def calls(self) -> list[list[str]]:
        return [words for words, _ in self._lines()]

    @property
    def manifests(self) -> list[dict]:
        return [yaml.safe_load(stdin) for _, stdin in self._lines() if stdin]

    def _lines(self) -> list:
        path = self.place / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def remote(call: list[str]) -> list[str]:
    """The words that the remote shell of a `gcloud … ssh` reads."""
    (command,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    return shlex.split(command)


def shown(text: str) -> list[list[str]]:
    """The commands a dry run prints, as a shell would read them."""
    return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("+ ")]


def test_shellcheck_finds_nothing():
    scripts = sorted((ROOT / "launch").glob("*.sh"))
    command = [Path(sys.executable).parent / "shellcheck", "-x", "-P", ROOT / "launch", "-P", ROOT]
    done = subprocess.run([*command, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


POD = ("--zone", "us-east5-b", "--type", "v6e-16")


def test_a_pod_is_created_filled_installed_started_and_followed_in_this_order(machine):
    done = machine.run("tpu_pod.sh", "train", "crem", *POD, "--spot", "--", *TRICKY, BUCKET)
    assert done.returncode == 0, done.stderr
    describe, create, scp, *ssh = machine.calls
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert describe[:6] == [*tpu, "describe", "crem"]
    assert create[:6] == [*tpu, "create", "crem"]
    assert "--spot" in create and create[create.index("--version") + 1] == "v2-alpha-tpuv6e"
    assert create[create.index("--accelerator-type") + 1] == "v6e-16"
    assert scp[4] == "scp" and scp[6] == "crem:crem_jax.tar.gz"
    assert all(call[:6] == [*tpu, "ssh", "crem"] and "--worker=all" in call for call in ssh)
    assert all(call[call.index("--zone") + 1] == "us-east5-b" for call in machine.calls)
    unpack, install, start, follow = map(remote, ssh)
    assert unpack[-4:] == ["-xzf", "crem_jax.tar.gz", "-C", "crem_jax"]
    worker = ["bash", "crem_jax/launch/tpu_worker.sh"]
    assert install == [*worker, "install"] and follow == [*worker, "follow"]
    assert start == [*worker, "start", *TRICKY, BUCKET]


def test_the_copy_of_a_checkout_knows_its_commit(machine):
    def copied() -> str:
        assert machine.run("tpu_pod.sh", "copy", "crem").returncode == 0
        with tarfile.open(machine.place / "crem_jax.tar.gz") as bundle:
            assert "launch/tpu_worker.sh" in bundle.getnames()
            return bundle.extractfile("COMMIT").read().decode()

    assert copied() == git_commit(machine.root) + "\n"
    with (machine.root / "launch" / "common.sh").open("a") as file:
        file.write("# changed\n")
    assert copied() == git_commit(machine.root) + "\n" and copied().endswith("+\n")


BROUGHT = ("gs://bucket/my models=models", "gs://bucket/x=1/it's=/data/$x y")


def test_what_is_brought_reaches_the_start_of_a_run_and_is_remembered(machine):
    machine.answers(dict(to=["describe"], out="READY"))
    bring = [word for each in BROUGHT for word in ("--bring", each)]
    done = machine.run("tpu_pod.sh", "start", "crem", *bring, "--", *TRICKY, BUCKET)
    assert done.returncode == 0, done.stderr
    first = remote(machine.calls[-1])
    assert first[3:] == [*bring, *TRICKY, BUCKET]
    assert machine.run("tpu_pod.sh", "resume", "crem").returncode == 0
    assert remote(machine.calls[-2]) == first


def test_a_pod_that_is_there_is_used_again(machine):
    machine.answers(dict(to=["describe"], out="READY"))
    assert machine.run("tpu_pod.sh", "create", "crem", "--zone", "z").returncode == 0
    assert len(machine.calls) == 1


def test_a_queued_pod_is_waited_for_and_one_that_fails_is_an_error(machine):
    states = ("", "WAITING", "ACTIVE")
    machine.answers(*[dict(to=["queued", "describe"], out=s, times=1) for s in states])
    assert machine.run("tpu_pod.sh", "create", "crem", *POD, "--queued").returncode == 0
    verbs = [call[3:5] for call in machine.calls]
    queued = "queued-resources"
    asked = [queued, "describe"]
    assert verbs[1:] == [asked, [queued, "create"], asked, asked]
    machine.answers(dict(to=["queued", "describe"], out="FAILED"))
    done = machine.run("tpu_pod.sh", "create", "crem", *POD, "--queued")
    assert done.returncode == 1 and "queued resource crem is FAILED" in done.stderr


def test_a_worker_that_fails_stops_the_others_and_shows_its_log(machine):
    log = "crem worker failed: worker 3 (host) ended with exit code 1; its log:\nno such pixel"
    machine.answers(dict(to=["follow"], out=log, code=1), dict(to=["describe"], out="READY"))
    done = machine.run("tpu_pod.sh", "train", "crem", *POD, "--", BUCKET)
    assert done.returncode == 1
    assert "worker 3" in done.stdout and "no such pixel" in done.stdout
    assert remote(machine.calls[-1])[-2:] == ["stop", "now"]


def test_a_run_on_a_pod_that_has_saved_says_so(machine):
    machine.answers(dict(to=["follow"], out="crem worker saved: worker 0 (host)"))
    assert machine.run("tpu_pod.sh", "logs", "crem").returncode == 75


def test_a_preempted_pod_is_made_anew_and_the_run_goes_on(machine):
    machine.answers(
        dict(to=["describe"], out="READY", times=1),
        dict(to=["follow"], code=255, times=1),
        dict(to=["describe"], out="PREEMPTED", times=2),
    )
    words = ("train", "crem", *POD, "--retries", "1", "--", BUCKET)
    done = machine.run("tpu_pod.sh", *words)
    assert done.returncode == 0, done.stderr
    verbs = [call[4] for call in machine.calls]
    again = ["describe", "describe", "delete", "create", "scp", "ssh", "ssh", "ssh", "ssh"]
    assert verbs == ["describe", "scp", "ssh", "ssh", "ssh", "ssh", *again]


def test_a_queued_resource_that_was_preempted_is_deleted_before_it_is_asked_for_again(machine):
    states = ("", "ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED", "WAITING", "ACTIVE")
    machine.answers(
        dict(to=["follow"], code=255, times=1),
        *[dict(to=["queued", "describe"], out=state, times=1) for state in states],
    )
    words = ("train", "crem", *POD, "--spot", "--queued", "--retries", "1", "--", BUCKET)
    done = machine.run("tpu_pod.sh", *words)
    assert done.returncode == 0, done.stderr
    verbs = [call[4] for call in machine.calls if call[3] == "queued-resources"]
    again = [*["describe"] * 3, "delete", "create", "describe", "describe"]
    assert verbs == ["describe", "create", "describe", *again]
    assert "the queued resource crem is SUSPENDING without its TPU" in done.stderr


def test_a_queued_resource_that_waits_already_is_waited_for(machine):
    states = ("WAITING", "WAITING", "ACTIVE")
    machine.answers(*[dict(to=["queued", "describe"], out=s, times=1) for s in states])
    assert machine.run("tpu_pod.sh", "create", "crem", *POD, "--queued").returncode == 0
    assert [call[4] for call in machine.calls] == ["describe"] * 4


def test_a_queued_resource_whose_tpu_cannot_be_seen_is_not_deleted(machine):
    machine.answers(dict(to=["queued", "describe"], out="ACTIVE"))
    done = machine.run("tpu_pod.sh", "create", "crem", *POD, "--queued")
    assert done.returncode == 1 and "is ACTIVE, but its TPU cannot be seen" in done.stderr
    assert [call[4] for call in machine.calls] == ["describe", "describe"]


def test_resume_and_fetch_know_the_arguments_of_the_last_start(machine):
    machine.answers(dict(to=["describe"], out="READY"))
    assert machine.run("tpu_pod.sh", "start", "crem", "--", *TRICKY, BUCKET).returncode == 0
    first = remote(machine.calls[-1])
    assert machine.run("tpu_pod.sh", "resume", "crem").returncode == 0
    assert remote(machine.calls[-2]) == first
    assert machine.run("tpu_pod.sh", "fetch", "crem").returncode == 0
    assert machine.calls[-1][-2:] == ["gs://bucket/run", "runs/crem"]
    none = machine.run("tpu_pod.sh", "resume", "other")
    assert none.returncode == 2 and "nothing was started on other" in none.stderr


@pytest.mark.parametrize(
    ("script", "words", "reason"),
    [
        ("tpu_pod.sh", ["fly", "crem"], "expected a verb, got 'fly'"),
        ("tpu_pod.sh", ["train", "My Pod"], "got 'My Pod'"),
        ("tpu_pod.sh", ["train", "a", "--", "--workdir=/local"], "needs --workdir=gs://BUCKET/RUN"),
        ("tpu_pod.sh", ["train", "a", "--zone"], "--zone needs a value"),
        ("tpu_pod.sh", ["train", "a", "--bring", "data=data"], "--bring 'data=data' is not gs://B"),
        ("tpu_pod.sh", ["resume", "a", "--bring", "gs://b/x=y"], "takes the arguments of the last"),
        ("gke.sh", ["start", "a", "--bring", "gs://b/data"], "is not gs://BUCKET/FOLDER=DIR"),
        ("gke.sh", ["start", "a", "--image", "i", "--topology", "v9:4", "--", "x"], "'v9:4' is"),
        ("gke.sh", ["start", "a", "--topology", "v5e:4x4", "--", "x"], "start needs --image"),
        *(
            (
                "gke.sh",
                [verb, "a", option, value, "--", "x"],
                f"{option} '{value.split(chr(10))[0]}",
            )
            for verb in ("start", "render", "stop")
            for option, values in (
                ("--slices", ("0", "-1", "1.5", "two", "1\n  evil: 1", "01", "9999999", "1 ")),
                ("--restarts", ("-1", "x", "1e3", "3\n  rules: []", "{}")),
                ("--namespace", ("Prod", "a.b", "-a", "a\nb", "a" * 64, "a'b")),
                ("--service-account", ("A", "a_b", "a: b", 'a"b', "a..b", "a\nb")),
                ("--image", ("a b", "i\nj", 'i"', "-i", "$(x)")),
            )
            for value in values
        ),
        ("slurm_gpu.sh", ["--nodes", "2"], "expected arguments of crem train after --"),
        ("slurm_gpu.sh", ["--fast", "--", "x"], "unknown option --fast"),
        ("slurm_gpu.sh", ["stop", "all"], "expected the number of a job"),
        ("local_multiprocess.sh", ["two"], "expected the number of processes, got 'two'"),
        ("local_multiprocess.sh", ["--devices", "x", "2"], "--devices 'x' is no number"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_called(machine, script, words, reason):
    done = machine.run(script, *words)
    assert done.returncode == 2 and reason in done.stderr
    assert not machine.calls


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("tpu_pod.sh", ["train", "crem", *POD, "--queued", "--dry-run", "--", *TRICKY, BUCKET]),
        ("tpu_pod.sh", ["start", "a", "--bring", "gs://b/x=y", "--dry-run", "--", *TRICKY, BUCKET]),
        ("tpu_pod.sh", ["stop", "crem", "--dry-run"]),
        ("tpu_pod.sh", ["delete", "crem", "--dry-run"]),
        ("gke.sh", ["logs", "crem", "--dry-run"]),
        ("gke.sh", ["stop", "crem", "--dry-run"]),
        ("slurm_gpu.sh", ["--dry-run", "--", *TRICKY]),
        ("local_multiprocess.sh", ["--dry-run", "2", *TRICKY]),
    ],
)
def test_a_dry_run_prints_every_command_and_calls_none(machine, script, words):
    done = machine.run(script, *words)
    assert done.returncode == 0, done.stderr
    assert not machine.calls
    printed = shown(done.stderr)
    assert printed and all(command[0] in FAKES for command in printed)
    if "--queued" in words:
        verbs = [command[3:5] for command in printed]
        polled = ["queued-resources", "describe"]
        assert verbs[0] == ["tpu-vm", "describe"] and verbs[1] == verbs[3] == polled
    if TRICKY[0] in words:
        everything = [word for command in printed for word in command]
        inside = [shlex.split(w.removeprefix("--command=")) for w in everything if "--command" in w]
        everything += [word for words in inside for word in words]
        assert set(TRICKY) | {word for word in words if "=y" in word} <= set(everything)


@pytest.fixture
def worker(machine):
    """Runs tpu_worker.sh in a copy of the code, as worker `number`."""

    def run(*words: str, number: int = 0) -> subprocess.CompletedProcess:
        return machine.run("tpu_worker.sh", *words, TPU_WORKER_ID=str(number))

    return run


def test_a_worker_starts_a_run_that_outlives_the_connection_and_stop_lets_it_save(machine, worker):
    machine.answers(dict(to=["crem"], out="step 1", sleep=60))
    assert worker("start", *TRICKY).returncode == 0
    deadline = time.monotonic() + 20
    while "running: step 1" not in worker("status").stdout:
        assert time.monotonic() < deadline
    assert "going on here already" in worker("start").stderr
    assert worker("stop").returncode == 0
    assert worker("status").stdout == "ended with exit code 75\n"
    assert machine.calls == [["crem", "train", *TRICKY]]
    done = worker("follow")
    assert done.returncode == 0 and "crem worker saved: worker 0" in done.stdout


def test_a_worker_brings_what_the_run_needs_before_it_starts(machine, worker):
    place = machine.place / "data"
    bring = ("--bring", BROUGHT[0], "--bring", f"gs://bucket/x=1/it's={place}/$x y")
    assert worker("start", *bring, *TRICKY).returncode == 0
    assert worker("follow").returncode == 0
    rsync = ["gcloud", "storage", "rsync", "--recursive"]
    assert machine.calls == [
        [*rsync, "gs://bucket/my models", "models"],
        [*rsync, "gs://bucket/x=1/it's", f"{place}/$x y"],
        ["crem", "train", *TRICKY],
    ]
    assert (machine.root / "models").is_dir() and (place / "$x y").is_dir()


def test_a_run_whose_data_cannot_be_brought_does_not_start(machine, worker):
    machine.answers(dict(to=["rsync"], out="no such bucket", code=1))
    worker("start", "--bring", BROUGHT[0], "--config=x")
    done = worker("follow", number=3)
    assert done.returncode == 1 and "crem worker failed: worker 3" in done.stdout
    assert "no such bucket" in done.stdout
    assert [call[0] for call in machine.calls] == ["gcloud"]


@pytest.mark.parametrize("number", [0, 3])
def test_whoever_follows_a_worker_that_fails_sees_its_log(machine, worker, number):
    machine.answers(dict(to=["crem"], out="no such pixel", code=1))
    worker("start", "--config=x")
    done = worker("follow", number=number)
    assert done.returncode == 1
    assert f"crem worker failed: worker {number}" in done.stdout
    assert "no such pixel" in done.stdout


GKE = ("start", "crem", "--image", "registry/crem:1", "--topology", "v5e:4x4")


def test_the_jobset_holds_one_pod_a_host_and_every_argument_as_it_is(machine):
    machine.answers(dict(to=["get", "jobset"], out="Completed"))
    done = machine.run("gke.sh", *GKE, "--slices", "2", "--", *TRICKY, BUCKET)
    assert done.returncode == 0, done.stderr
    assert [call[1] for call in machine.calls] == ["apply", "logs", "get"]
    (manifest,) = machine.manifests
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert manifest["metadata"]["name"] == "crem" and job["replicas"] == 2
    assert spec["parallelism"] == spec["completions"] == 4
    assert container["command"] + container["args"] == ["crem", "train", *TRICKY, BUCKET]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    rendered = machine.run("gke.sh", "render", *GKE[1:], "--slices", "2", "--", *TRICKY, BUCKET)
    assert yaml.safe_load(rendered.stdout) == manifest


def test_a_jobset_mounts_what_is_brought(machine):
    bring = [word for each in BROUGHT for word in ("--bring", each)]
    words = ("render", *GKE[1:], *bring, "--", *TRICKY, BUCKET)
    manifest = yaml.safe_load(machine.run("gke.sh", *words).stdout)
    template = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    (container,), volumes = template["spec"]["containers"], template["spec"]["volumes"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert [volume["csi"]["volumeAttributes"] for volume in volumes] == [
        {"bucketName": "bucket", "mountOptions": "implicit-dirs,only-dir=my models"},
        {"bucketName": "bucket", "mountOptions": "implicit-dirs,only-dir=x=1/it's"},
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"brought-0": "/crem_jax/models", "brought-1": "/data/$x y"}
    assert container["args"] == [*TRICKY, BUCKET]


def test_a_jobset_that_fails_shows_the_log_of_the_pod_that_failed(machine):
    machine.answers(
        dict(to=["get", "pods"], out="pod/crem-slice-0-2"),
        dict(to=["get", "jobset"], out="", times=1),
        dict(to=["get", "jobset"], out="Failed"),
        dict(to=["logs", "pod/crem-slice-0-2"], out="no such pixel"),
    )
    done = machine.run("gke.sh", *GKE, "--", BUCKET)
    assert done.returncode == 1
    assert "the run crem has failed" in done.stderr and "no such pixel" in done.stderr


def test_a_job_asks_for_a_process_a_gpu_and_a_signal_before_its_end(machine):
    machine.answers(dict(to=["sbatch"], out="77;cluster"))
    words = ("--nodes", "2", "--gpus", "4", "--time", "1:00:00")
    done = machine.run("slurm_gpu.sh", *words, "--", *TRICKY)
    assert done.returncode == 0 and "job 77" in done.stdout
    (call,) = machine.calls
    options = dict(itertools.pairwise(call))
    assert options["--ntasks-per-node"] == options["--gpus-per-node"] == "4"
    assert options["--time"] == "1:00:00" and options["--signal"] == "TERM@180"
    assert call[call.index("launch/slurm_gpu.sh") + 1 :] == ["__job", *TRICKY]


@pytest.mark.parametrize(("code", "again"), [(0, False), (75, True), (143, True), (1, False)])
def test_a_job_that_has_saved_is_queued_again_unless_it_was_stopped(machine, code, again):
    machine.answers(dict(to=["srun"], code=code))
    done = machine.run("slurm_gpu.sh", "__job", *TRICKY, SLURM_JOB_ID="77")
    assert done.returncode == code
    srun = ["srun", "--kill-on-bad-exit=1", "--label", "crem", "train", *TRICKY]
    assert machine.calls == [srun, *([["scontrol", "requeue", "77"]] if again else [])]
    machine.run("slurm_gpu.sh", "stop", "77")
    assert machine.calls[-1] == ["scancel", "--signal=TERM", "77"]
    machine.run("slurm_gpu.sh", "__job", *TRICKY, SLURM_JOB_ID="77")
    assert machine.calls[-1] == srun


def test_following_a_job_that_fails_shows_its_log(machine):
    machine.answers(dict(to=["sbatch"], out="77"), dict(to=["sacct"], out="FAILED"))
    (machine.root / "runs" / "logs").mkdir(parents=True)
    (machine.root / "runs" / "logs" / "77.log").write_text("3: no such pixel\n")
    done = machine.run("slurm_gpu.sh", "--follow", "--", *TRICKY)
    assert done.returncode == 1
    assert "job 77 (FAILED)" in done.stderr and "no such pixel" in done.stderr


def test_a_process_that_fails_ends_the_others_and_its_log_is_shown(machine):
    machine.answers(
        dict(to=["crem", ",3,1"], out="no such pixel", code=9), dict(to=["crem"], sleep=60)
    )
    since = time.monotonic()
    done = machine.run("local_multiprocess.sh", "--port", "9", "3", *TRICKY)
    assert done.returncode == 9 and time.monotonic() - since < 30
    assert "process 1 of 3 ended with exit code 9" in done.stderr
    assert "no such pixel" in done.stderr
    wanted = [["crem", "train", *TRICKY, f"--distributed=127.0.0.1:9,3,{i}"] for i in range(3)]
    assert sorted(machine.calls) == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_local_process_and_the_run_says_it_has_saved(machine, number):
    machine.answers(dict(to=["crem"], sleep=60))
    process = machine.start("local_multiprocess.sh", "2", *TRICKY)
    while len(list(machine.root.glob("runs/logs/*/*.log"))) < 2 or len(machine.calls) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    if number == signal.SIGINT:  # Ctrl-C goes to all that the terminal runs
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "the same command goes on" in err
