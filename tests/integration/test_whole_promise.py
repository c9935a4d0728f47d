"""What a hospital is promised, typed as people type it: approve, take part, withdraw, read the log, verify it."""

import csv
import json
from pathlib import Path

import pytest

from tests.integration.support.deployment import Deployment, deploy, wait_for

PHANTOM = {"source": "phantom", "images_per_site": 400, "num_classes": 3, "image_size": 16}


def command(deployment: Deployment, name: str, *options: str) -> tuple[int, str]:
    """Type ``flower-client`` at a site."""
    done = deployment.run("client", "--config", str(deployment.kit / "kits" / name / "client.yaml"), *options)
    return done.returncode, done.stdout


@pytest.mark.ci
def test_approved_run_withdrawn_from_audited_and_verified_by_both_sides(tmp_path: Path) -> None:
    policy = {"policy": {"suppression": {"k": 10, "k_row": 5}, "min_images": 50}}
    with deploy(tmp_path, client={"data": PHANTOM, "exclude": "withdrawn.txt", **policy}, artefact=True) as deployment:
        deployment.approves = False
        for name in deployment.names:
            (deployment.kit / "kits" / name / "withdrawn.txt").write_text("")
        server, clients = deployment.start()
        wait_for("a site waits for its approval", lambda: "--approve" in clients[0].text(), 60)
        assert not deployment.history()

        for name in deployment.names:
            code, text = command(deployment, name, "--approve", "--yes")
            assert code == 0, text
        wait_for("the first round", deployment.history, 120)
        kit = deployment.kit / "kits" / "site_01"
        with (kit / "state" / "splits" / "site_01.csv").open() as table:
            gone = next(row["group"] for row in csv.DictReader(table) if row["part"] == "train")
        (kit / "withdrawn.txt").write_text(f"{gone}\n")
        assert server.wait(240) == 0, server.text()
        for client in clients:
            assert client.wait(60) == 0, client.text()

        log = kit / "state" / "audit.jsonl"
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        exclusions = [entry["fields"]["exclusions"] for entry in entries if entry["event"] == "sent"]
        assert exclusions[-1]["images"]["train"] >= 1
        assert exclusions[-1]["further"]["train"] >= 9, "the images of k - 1 other patients"
        assert gone not in log.read_text()
        code, text = command(deployment, "site_01", "--audit")
        assert code == 0
        assert "training" in text
        for name in deployment.names:
            code, text = command(deployment, name, "--verify-audit")
            assert code == 0, text
        verified = deployment.run("server", "--config", str(deployment.config), "--verify-audit")
        assert verified.returncode == 0, verified.stdout
        assert "site_01" in verified.stdout

        log.write_text("".join(log.read_text().splitlines(keepends=True)[:-3]))
        code, text = command(deployment, "site_01", "--verify-audit")
        assert code == 1, text
