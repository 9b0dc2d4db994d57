"""Scoring formulas on cases worked out by hand."""

from __future__ import annotations

import pytest

from train_entry import scoring


def test_classification_figures_and_confusion_with_an_answer_that_is_no_label():
    expected = ["a", "a", "a", "b", "b", "c"]
    given = ["a", "a", "b", "b", None, "b"]
    found = scoring.classification(expected, given, ("a", "b", "c"))
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["confusion_matrix"] == {
        "labels": ["a", "b", "c"],
        "columns": ["a", "b", "c", "(other)"],
        "rows": [[2, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]],
    }
    a, b, c = (found["per_class"][k] for k in "abc")
    assert (a["precision"], a["recall"], a["support"]) == (1.0, pytest.approx(2 / 3), 3)
    assert (b["precision"], b["recall"], b["f1"]) == (pytest.approx(1 / 3), 0.5, pytest.approx(0.4))
    assert (c["precision"], c["recall"], c["f1"]) == (0.0, 0.0, 0.0)
    assert found["macro_f1"] == pytest.approx((0.8 + 0.4 + 0.0) / 3)


def test_confusion_has_no_other_column_when_every_answer_is_a_label():
    found = scoring.classification(["a", "b"], ["b", "b"], ("a", "b"))
    assert found["confusion_matrix"]["columns"] == ["a", "b"]
    assert found["confusion_matrix"]["rows"] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("refund", "refund"),
        ("  Refund.\nbecause", "refund"),
        ('"card lost"', "card lost"),
        ("refunds", None),
        ("", None),
    ],
)
def test_free_answer_names_a_label_only_when_it_is_one(answer, label):
    assert scoring.as_label(answer, ("refund", "card lost")) == label


def test_extraction_counts_field_and_value_pairs():
    expected = ['{"name": "Ann", "age": 3}', '{"name": "Bob"}', '{"name": "Cid"}']
    given = ['```json\n{"age": 3, "name": "Ann"}\n```', '{"name": "Rob", "age": 1}', "no idea"]
    found = scoring.extraction(expected, given)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["field_f1"] == pytest.approx(2 * 2 / (4 + 4))
    assert found["per_field"] == {"age": pytest.approx(2 / 3), "name": pytest.approx(2 / 5)}
    assert found["invalid_json"] == 1


def test_extraction_tells_true_from_one():
    found = scoring.extraction(['{"paid": true}'], ['{"paid": 1}'])
    assert (found["exact_match"], found["field_f1"]) == (0.0, 0.0)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # LCS "the cat on": 3 of 4 expected words, 3 of 5 given ones.
    found = scoring.generation(["the cat sat on"], ["the big cat lies on"])
    precision, recall = 3 / 5, 3 / 4
    assert found["rouge_l"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert scoring.generation(["same text"], ["same text"])["rouge_l"] == 1.0
