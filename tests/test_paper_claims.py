"""The study of the paper's claims: its grid, resuming after a stop, and the statements on its page."""

import dataclasses
import shutil
import sys

import pytest

from simclrv2_tf.settings.merge import resolve

sys.path.insert(0, "benchmarks")
import paper_claims
from page import read_lines
from paper_claims import CLAIMS, STUDIES, Job, difference, in_words, jobs, verdict


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_of_the_grid_can_be_set_up_after_those_it_needs(study):
    seen = set()
    for job in jobs(study, 0):
        needed = [value.name for value in job.settings.values() if isinstance(value, Job)]
        assert seen.issuperset(needed) and job.name not in seen
        seen.add(job.name)
        resolve({k: v.name if isinstance(v, Job) else v for k, v in job.settings.items()})


def test_every_column_of_a_claim_has_its_runs():
    keys = [job.key for job in jobs("digits", 0)]
    for claim in CLAIMS:
        for column in claim.columns.values():
            assert {key["labels"] for key in keys if column.items() <= key.items()} == set(STUDIES["digits"].labels)


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped_and_makes_its_page(tmp_path, monkeypatch):
    common = STUDIES["digits"].common | dict(train_steps=2, checkpoint_steps=2, train_batch_size=16, image_size=8)
    small = {"resnet_depth": 10, "width_multiplier": 0.0625}
    toy = dataclasses.replace(
        STUDIES["digits"], common=common, networks={"base": small, "half": small}, labels=(2,), seeds=(0,)
    )
    monkeypatch.setattr(paper_claims, "STUDIES", {"digits": toy})
    results = tmp_path / "results.jsonl"
    wanted = [job for job in jobs("digits", 0) if job.key["network"] == "base"][:4]
    monkeypatch.setattr(paper_claims, "jobs", lambda *_: iter(wanted))
    paper_claims.run("digits", tmp_path / "runs", minutes=0, seeds=[], results=results)
    assert [line["stage"] for line in read_lines(results)] == ["pixels"]
    paper_claims.run("digits", tmp_path / "runs", minutes=10, seeds=[], results=results)
    found = read_lines(results)
    assert [line["stage"] for line in found] == ["pixels", "pretrain", "linear_eval", "finetune", "finetune"]
    paper_claims.run("digits", tmp_path / "runs", minutes=10, seeds=[], results=results)
    assert read_lines(results) == found
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("Head\n<!-- results -->\nold\n<!-- end of results -->\n")
    paper_claims.draw(results, tmp_path)
    text = page.read_text()
    assert text.startswith("Head\n") and "old" not in text
    assert f"| base | {100 * found[2]['linear_top1']:.1f} (1 seed) |" in text
    assert "| raw pixels |  | 95.8 |" in text
    assert "Not run." in text and not list((tmp_path / "docs" / "figures").iterdir())  # no claim has both columns


def test_the_page_holds_what_the_lines_say(tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copy(paper_claims.ROOT / "docs/results.md", tmp_path / "docs")
    paper_claims.draw(root=tmp_path)
    assert (tmp_path / "docs/results.md").read_text() == (paper_claims.ROOT / "docs/results.md").read_text()
    for figure in (tmp_path / "docs" / "figures").iterdir():
        assert (paper_claims.ROOT / "docs" / "figures" / figure.name).exists()


def line(seed, top1, network="base", stage="finetune", variant="layer 1", labels=5):
    key = dict(study="digits", network=network, seed=seed, stage=stage, labels=labels, variant=variant)
    return key | {f"{stage}_top1": top1, "seconds": 1.0, "date": "2026-11-26", "device": "CPU"}


def test_a_claim_is_decided_seed_by_seed(tmp_path):
    (claim,) = (claim for claim in CLAIMS if claim.name == "few_labels")
    ours = [line(seed, 0.9 + seed / 100) for seed in (0, 1, 2)]
    theirs = [line(seed, 0.8 + seed / 100, stage="supervised", variant="") for seed in (1, 2, 3)]
    found = difference(ours + theirs, 5, claim.columns["fine-tuned"], claim.columns["supervised"])
    assert found == pytest.approx([10, 10])  # over the seeds that both have
    table = paper_claims.claim_table(claim, ours + theirs, (5, 10))
    assert table.splitlines()[2:] == [
        "| 5 | 82.0 ± 1.0 | 91.0 ± 1.0 | +10.0 ± 0.0 (2 seeds): yes |",
        "| 10 | not run | not run | not run |",
    ]


def test_a_verdict_needs_more_than_the_spread():
    assert verdict([2.0, 3.0, 4.0]) == "yes" and verdict([-2.0, -3.0]) == "no"
    assert verdict([2.0, -1.0, 1.0]) == verdict([5.0]) == verdict([]) == "open"
    assert in_words([1.0, 2.0, 3.0], "+") == "+2.0 ± 1.0" and in_words([]) == "not run"
