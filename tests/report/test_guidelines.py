"""``tripod_ai.md``: every item of both guidelines, with the numbers of the report or without an answer."""

import re
from collections import Counter

from fedmed.report.document import build_document
from fedmed.report.guidelines.answers import ANSWERS
from fedmed.report.guidelines.items import CLAIM, TRIPOD_AI
from fedmed.report.guidelines.page import UNKNOWN, render_guidelines
from tests.report.support.example import make_content


def _rows(text):
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if re.match(r"\| \d", line)]


def test_all_items_are_there_once_and_in_order():
    assert {int(re.match(r"\d+", item.number).group()) for item in TRIPOD_AI} == set(range(1, 28))
    assert [item.number for item in CLAIM] == [str(number) for number in range(1, 45)]
    numbers = [item.number for item in TRIPOD_AI]
    assert len(numbers) == len(set(numbers)) == 52
    assert {item.answer for item in (*TRIPOD_AI, *CLAIM)} - {""} == set(ANSWERS)
    # The sub-items by letter, as the statement counts them: 27 items, 52 with their parts.
    lettered = {"3": 3, "5": 2, "6": 3, "8": 3, "9": 3, "12": 7, "18": 6, "20": 3, "23": 2, "27": 3}
    found = Counter(number[:-1] for number in numbers if number[-1].isalpha())
    assert found == lettered


def test_the_file_says_what_its_numbers_were_compared_with():
    text = render_guidelines(build_document(make_content()))
    assert "compared with public transcriptions of them and not with the publications" in text


def test_answers_hold_the_numbers_of_the_report():
    rows = _rows(render_guidelines(build_document(make_content())))
    answers = {number.strip(): answer.strip() for number, _, answer in rows[:52]}
    assert "Balanced accuracy 0.625" in answers["23a"]
    assert answers["21"] == "Test images by class: benign 8, malignant 2."
    assert "train 80, validation 10, test 10, scored 10, patients not known" in answers["20a"]
    assert answers["17"] == UNKNOWN


def test_names_from_outside_are_no_markup():
    text = render_guidelines(build_document(make_content(title="a|b\n# <script>[x](y)")))
    assert "<script>" not in text
    assert "a\\|b \\# \\<script\\>\\[x\\](y)" in text
    assert all(len(row) == 3 for row in _rows(text))


def test_a_run_without_answers_has_the_list():
    content = make_content(test={}, validation={}, history=[], composition=None, rounds_done=0, notes=[])
    assert len(_rows(render_guidelines(build_document(content)))) == 52 + 44
