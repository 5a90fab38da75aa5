"""The files in deploy/: what they name exists, and what can be linted is."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import config
from service.__main__ import main
from tests.conftest import ROOT, SECRET

DEPLOY = ROOT / "deploy"
IMAGE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFEST = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
UNITS = sorted(DEPLOY.glob("*.service"))
PROGRAM = "/opt/systemevent-read/bin/systemevent-read"
# What each command needs beside what the files say.
REST = {"DATABASE_URL": "postgresql://role@db/platform", "AUTH_SECRET": SECRET}


def containers() -> Iterator[dict[str, Any]]:
    """Each container of the manifest."""
    for thing in MANIFEST:
        spec = thing["spec"].get("jobTemplate", thing)["spec"]
        yield from spec.get("template", {}).get("spec", {}).get("containers", ())


def pods() -> Iterator[dict[str, Any]]:
    """Each pod of the manifest."""
    for thing in MANIFEST:
        spec = thing["spec"].get("jobTemplate", thing)["spec"]
        if "template" in spec:
            yield spec["template"]["spec"]


# (where, the command's arguments, its variables)
COMMANDS: list[tuple[str, list[str], Mapping[str, str]]] = [
    *(
        (f"compose {name}", service.get("entrypoint", [])[3:] + service["command"], variables)
        for name, service in COMPOSE["services"].items()
        if service["image"] == "systemevent-read" and (variables := service["environment"])
    ),
    *(
        (
            f"manifest {box['name']}",
            box["args"],
            {e["name"]: e.get("value", "") for e in box["env"]},
        )
        for box in containers()
    ),
    *(
        (file.name, line.split(), {})
        for file in UNITS
        for line in re.findall(f"(?m)^ExecStart={PROGRAM}(.*)$", file.read_text())
    ),
]


@pytest.mark.parametrize(("where", "arguments", "_"), COMMANDS, ids=[c[0] for c in COMMANDS])
def test_each_command_is_one(where: str, arguments: list[str], _: object) -> None:
    """The command line knows it and its options."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*arguments, "--help"])


@pytest.mark.parametrize(("where", "_", "variables"), COMMANDS, ids=[c[0] for c in COMMANDS])
def test_each_variable_is_a_key(where: str, _: object, variables: Mapping[str, str]) -> None:
    """And has a value that can be used, together with those of the image."""
    found = dict(re.findall(r'(SYSTEMEVENT_\w+)="([^"]*)"', IMAGE)) | {
        name: value for name, value in variables.items() if name.startswith(config.PREFIX)
    }
    rest = {f"{config.PREFIX}{key}": value for key, value in REST.items()}
    if "SYSTEMEVENT_AUTH_SECRET_FILE" in found:
        del rest["SYSTEMEVENT_AUTH_SECRET"]
    for name in [name for name, value in found.items() if not value and name in rest]:
        del found[name]  # from a secret
    assert config.load(None, rest | found).server.host == "::"


def test_the_image_copies_what_there_is() -> None:
    """Each path exists, and is let through to the build."""
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied: list[str] = re.findall(r"(?m)^COPY ([^-]\S*)", IMAGE)
    assert copied
    for path in copied:
        assert (ROOT / path).exists()
        assert f"!{path}" in allowed


def test_the_ports_and_paths_are_those_of_the_service() -> None:
    """8080 in public, 8081 for the operator; probes ask for paths that are there."""
    defaults = config.Config()
    assert re.findall(r"(?m)^EXPOSE (\d+)$", IMAGE) == [str(defaults.server.port)]
    assert COMPOSE["services"]["service"]["ports"] == ["127.0.0.1:8080:8080"]
    (box,) = (box for box in containers() if box["args"] == ["serve"])
    ports = {port["name"]: port["containerPort"] for port in box["ports"]}
    assert ports == {"http": defaults.server.port, "admin": defaults.admin.port}
    probes = [box[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")]
    assert [(probe["path"], probe["port"]) for probe in probes] == [
        ("/live", "admin"),
        ("/ready", "admin"),
    ]
    site = (ROOT / "service/admin/site.py").read_text()
    for path in ("/live", "/ready"):
        assert f'"{path}"' in site
    for file in ("Dockerfile", "compose.yaml"):
        assert re.search(r"(8081|8081\)\})/(live|ready)", (DEPLOY / file).read_text())


def test_whoever_ends_it_gives_it_the_time() -> None:
    """For draining, and twice the deadline for what is in flight; only then is it killed."""
    needed = config.Server().drain + 2 * config.Limits().deadline + 10
    given = [
        COMPOSE["services"]["service"]["stop_grace_period"].removesuffix("s"),
        *re.findall(r"(?m)^TimeoutStopSec=(\d+)$", UNITS[-1].read_text()),
        *(pod[key] for pod in pods() for key in pod if key == "terminationGracePeriodSeconds"),
    ]
    assert len(given) == 3
    assert min(map(float, given)) > needed


def test_every_pod_is_as_tight_as_the_others() -> None:
    """No root, nothing written, no token of the cluster, no links; and the user of the image."""
    (user,) = re.findall(r"(?m)^USER (\d+):\1$", IMAGE)
    for pod in pods():
        assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user),
            "runAsGroup": int(user),
            "fsGroup": int(user),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    for box in containers():
        assert box["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert box["resources"]["limits"]["memory"]


def test_the_secret_is_a_file_where_it_is_mounted() -> None:
    """In the manifest; the selectors find what they are for."""
    (pod,) = (pod for pod in pods() if "volumes" in pod)
    (box,), (volume,) = pod["containers"], pod["volumes"]
    (mount,) = box["volumeMounts"]
    (item,) = volume["secret"]["items"]
    values = {one["name"]: one.get("value") for one in box["env"]}
    path = f"{mount['mountPath']}/{item['path']}"
    assert values["SYSTEMEVENT_AUTH_SECRET_FILE"] == path
    (deployment,) = (thing for thing in MANIFEST if thing["kind"] == "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for thing in MANIFEST:
        selector = thing["spec"].get("selector")
        if selector:
            assert selector.get("matchLabels", selector) == labels


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_the_units_are_right_and_tight(file: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` has no complaint, and `security` says OK."""
    unit = tmp_path / file.name
    unit.write_text(file.read_text().replace(PROGRAM, "/bin/true"))
    (timer,) = DEPLOY.glob("*.timer")
    shutil.copy(timer, tmp_path)
    shutil.copy(DEPLOY / "systemevent-read-prune.service", tmp_path / "other.service")
    also = [tmp_path / timer.name] if file.stem == timer.stem else []
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit, *also],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    said = subprocess.check_output(
        ["systemd-analyze", "security", "--offline=true", "--json=short", unit], text=True
    )
    exposed = {item["name"] for item in json.loads(said) if item["exposure"]}
    assert exposed <= EXPOSED


# What is left open, since it listens and connects; RootDirectory= would need a tree of its own.
EXPOSED = {
    "RootDirectory=/RootImage=",
    "PrivateMounts=",
    "RestrictAddressFamilies=~AF_UNIX",
    "RestrictAddressFamilies=~AF_(INET|INET6)",
    "PrivateNetwork=",
    "DeviceAllow=",
    "IPAddressDeny=",
}


def test_the_healthcheck_is_python() -> None:
    """That of the image, and that of compose, which asks whether it is ready."""
    (text,) = re.findall(r"(?ms)^HEALTHCHECK .* CMD (\[.*?\])$", IMAGE)
    command = json.loads(text.replace("\\\n", ""))
    test = COMPOSE["services"]["service"]["healthcheck"]["test"]
    for program, option, code in (command, test[1:]):
        assert (program, option) == ("/opt/venv/bin/python", "-c")
        assert ast.parse(code)
