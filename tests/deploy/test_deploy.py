"""Container images, the JobSet and the TPU script, as far as they can be tested without their platforms."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import image_steps
import pytest
import tensorflow as tf

from simclrv2_tf import cli

ROOT = pathlib.Path(__file__).parents[2]
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


class TestImages:
    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_an_image_runs_the_demo_as_non_root(self, name):
        image = image_steps.Image.read(ROOT / name)
        assert re.fullmatch(r"python:3\.1[1-3]-slim-\w+", image.last("FROM")) and image.last("USER") == "1000"
        assert json.loads(image.last("ENTRYPOINT")) == ["simclrv2-tf"]
        settings = cli.parse(["simclrv2-tf", *json.loads(image.last("CMD"))])
        assert settings["mode"] == "semi_supervised" and settings["dataset"] == "digits"

    @pytest.mark.parametrize("name", DOCKERFILES)
    def test_the_build_context_has_only_what_is_copied(self, name):
        image = image_steps.Image.read(ROOT / name)
        sources = {source for step, text in image.steps if step == "COPY" for source in text.split()[:-1]}
        assert all((ROOT / source).exists() for source in sources)
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        assert {line[1:] for line in ignored if line.startswith("!")} == sources

    def test_packages_are_a_layer_before_the_code(self):
        steps = image_steps.Image.read(ROOT / "Dockerfile").steps
        requirements = steps.index(("RUN", "pip install --constraint constraints.txt --requirement requirements.txt"))
        assert requirements < steps.index(("COPY", "simclrv2_tf simclrv2_tf"))

    def test_the_gpu_image_differs_only_in_cuda(self):
        cpu, gpu = (image_steps.Image.read(ROOT / name).steps for name in DOCKERFILES)
        (index,) = [index for index, (one, other) in enumerate(zip(cpu, gpu, strict=True)) if one != other]
        assert gpu[index] == (cpu[index][0], cpu[index][1] + ' "tensorflow[and-cuda]"')

    def test_compose_shares_the_runs_of_the_demo_with_tensorboard(self):
        yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
        services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
        train, gpu, tensorboard = (services[name] for name in ("train", "gpu", "tensorboard"))
        assert "command" not in train and (ROOT / gpu["build"]["dockerfile"]).is_file()
        assert train["volumes"] == gpu["volumes"] and train["image"] == tensorboard["image"]
        assert "runs:/work/runs" in train["volumes"] and "runs:/work/runs:ro" in tensorboard["volumes"]
        assert tensorboard["entrypoint"][:2] == ["tensorboard", "--logdir=/work/runs"]

    @pytest.mark.slow
    def test_the_steps_of_the_image_run_in_a_clean_venv(self, tmp_path):
        toy = ["--mode=supervised", "--dataset=digits", "--resnet_depth=10", "--image_size=8", "--train_steps=2"]
        command = [sys.executable, str(ROOT / "tests/deploy/image_steps.py"), str(ROOT / "Dockerfile"), str(tmp_path)]
        run = subprocess.run([*command, *toy, "--model_dir=runs/toy"], capture_output=True, text=True, timeout=1800)
        assert run.returncode == 0 and "supervised: done" in run.stdout, run.stderr[-2000:]
        assert (tmp_path / "work/runs/toy/report.html").is_file()


class TestKubernetes:
    @pytest.fixture(scope="class")
    def jobset(self):
        yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
        return next(yaml.safe_load_all((ROOT / "deploy/kubernetes/jobset.yaml").read_text()))

    @pytest.mark.parametrize("index", [0, 3])
    def test_each_worker_gets_its_tf_config(self, jobset, index, tmp_path, monkeypatch):
        (replicated,) = jobset["spec"]["replicatedJobs"]
        job = replicated["template"]["spec"]
        (container,) = job["template"]["spec"]["containers"]
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert variables["NUM_WORKERS"] == str(job["completions"]) and job["completionMode"] == "Indexed"
        program = tmp_path / "simclrv2-tf"
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$TF_CONFIG" "$@"\n')
        program.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index), **variables}
        command = [*container["command"], *container["args"]]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        tf_config, *flags = run.stdout.splitlines()
        monkeypatch.setenv("TF_CONFIG", tf_config)
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        assert (resolver.task_type, resolver.task_id) == ("worker", index)
        name, subdomain = jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"]
        hosts = [f"{name}-{replicated['name']}-0-{i}.{subdomain}:2222" for i in range(job["completions"])]
        assert resolver.cluster_spec().as_dict() == {"worker": hosts}
        assert flags == container["args"] and cli.parse(["simclrv2-tf", *flags])["mode"] == "pretrain"

    def test_a_lost_worker_restarts_all_and_a_user_error_ends_the_jobset(self, jobset):
        (replicated,) = jobset["spec"]["replicatedJobs"]
        job, policy = replicated["template"]["spec"], jobset["spec"]["failurePolicy"]
        assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
        assert policy["maxRestarts"] > 0
        (rule,) = job["podFailurePolicy"]["rules"]
        assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
        (rule,) = policy["rules"]
        assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])

    def test_the_user_of_the_image_can_write_to_the_volume(self, jobset):
        (replicated,) = jobset["spec"]["replicatedJobs"]
        pod = replicated["template"]["spec"]["template"]["spec"]
        user = image_steps.Image.read(ROOT / "Dockerfile.gpu").last("USER")
        assert str(pod["securityContext"]["fsGroup"]) == user


class TestTpu:
    def commands(self, *arguments, gcloud="echo gcloud"):
        """Returns the commands that the script prints instead of running them."""
        names = {"NAME": "birds", "ZONE": "us-a", "BUCKET": "nest", "GCLOUD": gcloud}
        script = ROOT / "deploy/tpu/tpu_vm.sh"
        run = subprocess.run([script, *arguments], env=os.environ | names, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        return ["gcloud" + text for text in run.stdout.split("gcloud")[1:]]

    @pytest.mark.parametrize("flags", [{}, {"dataset": "folder:/a b", "train_steps": 5}])
    def test_run_passes_the_flags_on(self, flags):
        (command,) = self.commands("run", *(f"--{name}={value}" for name, value in flags.items()))
        assert command.startswith("gcloud compute tpus tpu-vm ssh birds --zone=us-a --worker=0 --command=")
        settings = cli.parse(["run.py", *shlex.split(command.partition("run.py ")[2])])
        expected = {"mode": "pretrain", "use_tpu": True, "tpu_name": "local", "model_dir": "runs/r50"}
        assert settings == expected | flags

    def test_a_preempted_vm_is_recreated_before_the_run_resumes(self):
        verbs = [re.match(r"gcloud compute tpus tpu-vm (\w+)", command)[1] for command in self.commands("resume")]
        assert verbs == ["delete", "create", "scp", "ssh", "ssh"]

    def test_a_vm_that_is_gone_is_created_before_the_run_resumes(self, tmp_path):
        gcloud = tmp_path / "gcloud"
        gcloud.write_text('#!/bin/sh\ncase "$*" in *describe*) exit 1 ;; esac\necho gcloud "$@"\n')
        gcloud.chmod(0o755)
        commands = self.commands("resume", gcloud=str(gcloud))
        verbs = [re.match(r"gcloud compute tpus tpu-vm (\w+)", command)[1] for command in commands]
        assert verbs == ["create", "scp", "ssh", "ssh"]

    def test_without_a_command_it_prints_its_usage(self):
        run = subprocess.run(
            [ROOT / "deploy/tpu/tpu_vm.sh"], env=os.environ | {"NAME": "a", "ZONE": "b"}, capture_output=True, text=True
        )
        assert run.returncode == 2 and "create, run, resume after a preemption, delete" in run.stdout
