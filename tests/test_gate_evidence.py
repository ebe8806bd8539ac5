"""Evidence: what it is made of, that its file keeps all of it, and that nothing is judged by a broken one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from secateur import InputError
from secateur.gate.evidence import Evidence, Seen, check, read, seen, write
from secateur.objectives import OBJECTIVES

EXAMPLES, DIGEST = 40, "a" * 64
LABELS = np.arange(EXAMPLES) % 2
IDS = np.array([f"id{number}" for number in range(EXAMPLES)])


def side(**changes: object) -> Seen:
    """Answers that are all right, but for the first two."""
    answers = np.where(np.arange(EXAMPLES) < 2, 1 - LABELS, LABELS)
    made = Seen(DIGEST, IDS, answers, LABELS, np.full(EXAMPLES, 0.9), np.full(EXAMPLES, 0.1))
    return dataclasses.replace(made, **changes)


def evidence(**changes: object) -> Evidence:
    """Of two such files."""
    made = Evidence("accuracy", side(), side(), {"speedup": (2.0, 1.9, 2.1), "parity": (1e-6,) * 3})
    return dataclasses.replace(made, **changes)


def test_outputs_are_reduced_to_answers_and_how_sure_they_are() -> None:
    logits = np.log([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]]).astype(np.float32)
    made = seen(OBJECTIVES["classification"], [logits[:2], logits[2:]], np.array([0, 0, 1]), IDS[:3], DIGEST)
    assert made.answers.tolist() == [0, 1, 0]
    assert made.right.tolist() == [True, False, False]
    assert made.certainty == pytest.approx([0.9, 0.75, 0.5])
    assert made.brier == pytest.approx([0.02, 1.125, 0.5])


def test_metrics_of_other_objectives_have_no_probabilities() -> None:
    made = seen(OBJECTIVES["regression"], [np.ones((3, 1))], np.arange(3.0), IDS[:3], DIGEST)
    assert made.certainty is None
    assert made.brier is None


def test_a_file_of_evidence_keeps_all_of_it(tmp_path: Path) -> None:
    other = side(digest="b" * 64)
    whole = evidence(
        slices={"label": LABELS.astype(str)},
        documents=np.repeat(np.arange(8), 5).astype(str),
        changed={"noise": (side(), side()), "shifted": (other, other)},
        incumbent=side(certainty=None, brier=None),
    )
    write(tmp_path / "evidence.npz", whole)
    again = read(tmp_path / "evidence.npz", DIGEST)
    assert dict(again.measured) == dict(whole.measured)
    assert again.slices["label"].tolist() == whole.slices["label"].tolist()
    assert again.documents is not None
    assert again.documents.tolist() == whole.documents.tolist()
    assert again.incumbent is not None
    assert again.incumbent.brier is None
    assert set(again.changed) == {"noise", "shifted"}
    assert again.changed["shifted"][1].digest == "b" * 64
    for before, after in ((whole.dense, again.dense), (whole.pruned, again.pruned)):
        for name in ("ids", "answers", "targets", "certainty", "brier"):
            assert np.array_equal(getattr(before, name), getattr(after, name))


nan = np.full(EXAMPLES, np.nan)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"pruned": side(ids=IDS[::-1])},
            "the same examples of the test set for both files, 40 of 40 differ, such as number 0: id0 and id39",
        ),
        ({"pruned": side(ids=IDS[1:])}, "the same examples of the test set for both files, got 40 and 39"),
        (
            {"pruned": side(digest="c" * 64)},
            "answers to the test set aaaaaaaaaaaa, got those of pruned to cccccccccccc",
        ),
        ({"incumbent": side(digest="c" * 64)}, "got those of incumbent to cccccccccccc"),
        ({"pruned": side(certainty=nan)}, "finite certainty of pruned, got NaN or infinity for 40 of 40 examples"),
        ({"pruned": side(answers=nan)}, "finite answers of pruned, got NaN or infinity"),
        ({"changed": {"blur": (side(), side(brier=nan))}}, "finite brier of blur, got NaN"),
        ({"changed": {"blur": (side(), side(ids=IDS[::-1]))}}, "the same examples of blur for both files"),
        ({"dense": side(targets=LABELS[1:])}, "targets of dense for each of 40 examples, got (39,)"),
        ({"measured": {"speedup": (2.0, np.nan, 2.1)}}, "a finite speedup with its interval, got (2.0, nan, 2.1)"),
        ({"slices": {"site": LABELS[1:]}}, "a slice for each of 40 examples, got (39,) by site"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_broken_evidence_is_refused_in_a_sentence(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=r"^gate") as caught:
        check(evidence(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_evidence_on_another_test_set_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "evidence.npz", evidence())
    with pytest.raises(InputError, match=r"^gate: expected answers to the test set bbbbbbbbbbbb, got those of dense"):
        read(tmp_path / "evidence.npz", "b" * 64)


def test_a_file_that_is_no_evidence_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    write(tmp_path / "whole.npz", evidence())
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:400])
    for name in ("text", "other", "half", "nowhere"):
        with pytest.raises(InputError, match=r"^gate: expected a file of evidence, got "):
            read(tmp_path / f"{name}.npz")
