"""The page of bad input: every line names a test, and every test it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bad-input.md"
LINES = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!what came|---)", line)]


def test_the_page_has_its_lines():
    assert len(LINES) > 40


@pytest.mark.parametrize("line", LINES, ids=[line[2:42] for line in LINES])
def test_each_line_is_whole_and_names_tests_that_there_are(line):
    *cells, tests = [cell.strip() for cell in line.strip("|").split(" | ")]
    assert len(cells) == 4
    assert all(cells)
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", tests)
    assert named
    assert len(named) == tests.count("`") // 2
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name
