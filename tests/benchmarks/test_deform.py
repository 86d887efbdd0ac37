"""The catalogue of `defaultplusplus` as a benchmark: what counts as killed, what acts, runs that are judged again."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("defaultplusplus", reason="needs the extra `benchmarks`")

from benchmarks.fault_injection.deform import __main__ as command  # noqa: E402
from benchmarks.fault_injection.deform import mutants, report, subjects  # noqa: E402
from benchmarks.fault_injection.deform.mutants import Mutant  # noqa: E402
from benchmarks.fault_injection.deform.right import names_component  # noqa: E402
from benchmarks.fault_injection.deform.runs import SEEDS  # noqa: E402
from benchmarks.fault_injection.deform.texts import TASKS, Sources  # noqa: E402
from bert_toolkit.data.cola import SAMPLE_DIR  # noqa: E402


@pytest.fixture(scope="module")
def sources(newsgroups_archive: Path) -> Sources:
    return Sources(SAMPLE_DIR, newsgroups_archive)


def rows(task: str, *scores: float, **others: object) -> dict[int, dict]:
    model = "bert" if TASKS[task].classes else "gpt2"
    common = {"model": model, "task": task, "held_out": False, "error": None, "findings": []}
    return {
        seed: {**common, "score": score, "finite": bool(np.isfinite(score)), "seed": seed, **others}
        for seed, score in zip(SEEDS, scores, strict=False)
    }


@pytest.mark.parametrize(
    ("task", "clean", "mutated", "status"),
    [
        ("registers", (0.9, 0.9, 0.9, 0.9, 0.9), (0.8, 0.7, 0.8, 0.89, 0.6), "killed"),
        ("registers", (0.9, 0.9, 0.9, 0.9, 0.9), (0.5, 0.5, 0.5, 0.5, 0.9), "survived"),
        ("registers", (0.9, 0.9, 0.9, 0.9, 0.9), (0.8, 0.7), "open"),
        ("registers", (0.9, 0.9, 0.9, 0.9, 0.9), (0.91,), "survived"),
        ("speeches", (4.0, 4.1, 4.2, 4.0, 4.1), (4.1, 4.2, 4.3, 4.1, 4.2), "killed"),
        ("speeches", (4.0, 4.1, 4.2, 4.0, 4.1), (3.0, 3.2), "survived"),
        ("speeches", (4.0, 4.1, 4.2, 4.0, 4.1), (np.nan, 4.2, 4.3, 4.1, 4.2), "killed"),
    ],
)
def test_a_mutant_is_killed_where_it_is_worse_with_every_seed(task, clean, mutated, status) -> None:
    case = report.Case(Mutant("QZQ", None), rows(task, *clean), rows(task, *mutated))
    assert case.status == status


def test_a_run_that_ended_with_an_error_discards_the_mutant() -> None:
    broken = rows("registers", 0.1, error="a graph that is gone")
    assert report.Case(Mutant("CLK", None), rows("registers", 0.9), broken).status == "discarded"


def test_f1_weighs_clean_and_broken_runs_equally() -> None:
    assert report.f1(1.0, 0.0) == 1.0
    assert report.f1(0.0, 0.0) == 0.0
    # 80 of 100 broken runs found, 20 of 100 clean ones accused: 80 right of 100 alarms
    assert report.f1(0.8, 0.2) == pytest.approx(0.8)


def test_notes_and_symptoms_are_no_alarms() -> None:
    found = [
        {"symptom_of": None, "severity": "note"},
        {"symptom_of": "no_gradient", "severity": "error"},
        {"symptom_of": None, "severity": "warning"},
    ]
    assert report.alarms({"findings": found}) == found[2:]


def test_the_right_component_is_named_by_its_parameters() -> None:
    inside = {"rule": "not_updated", "parameters": ["bert.encoder.layer.0.attention.self.query.weight"]}
    outside = {"rule": "not_updated", "parameters": [*inside["parameters"], "classifier.weight"]}
    nowhere = {"rule": "loss_flat", "parameters": []}
    assert names_component(inside, Mutant("QZQ", None))
    assert not names_component(outside, Mutant("QZQ", None))
    assert not names_component(nowhere, Mutant("QZQ", None))


def test_the_survey_tells_what_acts_from_what_does_nothing(sources: Sources, monkeypatch) -> None:
    wanted = [
        Mutant("SDS", None),
        Mutant("QZQ", None),
        Mutant("QZK", None),
        Mutant("MRM", "batch"),
        Mutant("MRM", "head"),
    ]
    monkeypatch.setattr(mutants, "mutants", lambda scope: wanted)
    assert mutants.survey(subjects.SUBJECTS["bert"], sources) == {
        "SDS": "same as clean",
        "QZQ": "acts",
        "QZK": "acts",
        "MRM-batch": "acts",
        "MRM-head": "same as MRM-batch",
    }
    assert mutants.survey(subjects.SUBJECTS["gpt2"], sources)["QZQ"].startswith("cannot be applied")


def test_held_out_parts_are_whole_models_and_whole_tasks() -> None:
    for parts in (subjects.SUBJECTS, TASKS):
        for scope in ("encoder", "decoder"):
            groups = {part.held_out for part in parts.values() if part.scope == scope}
            assert groups == {True, False}


def test_runs_go_on_and_are_judged_again_from_their_samples(
    sources: Sources, tmp_path: Path, monkeypatch, capsys
) -> None:
    short = dataclasses.replace(subjects.SUBJECTS["bert"], steps=12)
    monkeypatch.setitem(subjects.SUBJECTS, "bert", short)
    results, survey = tmp_path / "deform.jsonl", tmp_path / "survey.json"
    survey.write_text(json.dumps({"bert": {m.name: "acts" for m in mutants.mutants("encoder")}}))

    def call(name: str, *flags: str) -> list[dict]:
        files = [
            "--cola",
            str(sources.cola),
            "--newsgroups",
            str(sources.newsgroups),
            "--histories",
            str(tmp_path / "h"),
        ]
        parts = ["--models", "bert", "--tasks", "registers", "--operators", "NZG", "--seeds", "1"]
        out = ["--results", str(results), "--survey", str(survey)]
        monkeypatch.setattr(sys, "argv", ["deform", name, *files, *parts, *out, *flags])
        command.main()
        return [json.loads(line) for line in results.read_text().splitlines()]

    first = call("run")
    assert [row["mutant"] for row in first] == ["clean", "NZG"]
    assert first[0]["findings"] == [] and first[1]["findings"]
    assert first[0]["predictor"]["component"] is None or first[0]["predictor"]["faulty"]
    assert call("run") == first
    for row in first:
        row["findings"] = [{"rule": "forgotten"}] * 2
    results.write_text("".join(json.dumps(row) + "\n" for row in first))
    again = call("rejudge")
    assert again[0]["findings"] == [] and {f["rule"] for f in again[1]["findings"]} != {"forgotten"}
    call("report")
    assert "### Encoders" in capsys.readouterr().out
