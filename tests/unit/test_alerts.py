"""deploy/alerts.yml and grafana.json, as Prometheus reads them (Debian: the package prometheus)."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine")


def promtool(*arguments: str | Path) -> None:
    """Run it; what it says is the reason of a failure."""
    done = subprocess.run([PROMTOOL or "", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_rules() -> None:
    promtool("check", "rules", ROOT / "deploy/alerts.yml")


@needs_promtool
def test_each_alert_fires_where_it_should_and_nowhere_else(tmp_path: Path) -> None:
    """tests/support/alerts.yml has an instance to which all of it happens, and one that is well."""
    shutil.copy(ROOT / "deploy/alerts.yml", tmp_path)
    shutil.copy(ROOT / "tests/support/alerts.yml", tmp_path / "test.yml")
    promtool("test", "rules", tmp_path / "test.yml")
    expected = (tmp_path / "test.yml").read_text()
    for group in yaml.safe_load((tmp_path / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert f'alertname="{rule["alert"]}"' in expected


def test_each_alert_is_in_the_manual() -> None:
    """With what it means, and what to do."""
    manual = (ROOT / "docs/metrics.md").read_text()
    for group in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert f"| `{rule['alert']}` |" in manual


@needs_promtool
def test_the_dashboard_asks_what_prometheus_understands(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__\w+", "5m", text)}
        for number, text in enumerate(asked)
    ]
    (tmp_path / "panels.yml").write_text(
        json.dumps({"groups": [{"name": "panels", "rules": rules}]})
    )
    promtool("check", "rules", tmp_path / "panels.yml")
