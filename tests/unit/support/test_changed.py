"""The tests that read what changed: through imports, names of programs and files, and verbs."""

import pytest

from tests.support.changed import readers

TEXTS = {
    "align/__init__.py": "",
    "align/cli.py": "import align.words\ndef f():\n    import align.words_of_one_verb\nif __name__ == '__main__': f()",
    "align/words.py": "TABLE = 'words.csv'",
    "align/words_of_one_verb.py": "",
    "align/filter/filter.py": "def f():\n    from align.filter import rules",
    "align/filter/rules.py": "",
    "tests/conftest.py": "import align.cli\nfrom tests.support import always",
    "tests/support/always.py": "NAME = 'filter'",
    "tests/words/conftest.py": "import align.words",
    "tests/words/test_in_a_folder.py": "",
    "tests/test_verb.py": "call('filter')",
    "tests/test_rules.py": "from align.filter.rules import f",
    "tests/test_program.py": "run('-m', 'align.cli')",
    "tests/test_other.py": "import os",
}
ALL = {name for name in TEXTS if "test_" in name}


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("tests/test_other.py", {"tests/test_other.py"}),
        ("align/filter/rules.py", {"tests/test_rules.py", "tests/test_verb.py"}),
        ("align/filter/filter.py", {"tests/test_verb.py"}),
        ("tests/words/conftest.py", {"tests/words/test_in_a_folder.py"}),
        ("align/words.py", {"tests/test_program.py", "tests/words/test_in_a_folder.py"}),
        ("align/words.csv", {"tests/test_program.py", "tests/words/test_in_a_folder.py"}),
        ("align/words_of_one_verb.py", set()),
        ("align/__init__.py", ALL - {"tests/test_other.py"}),
        ("tests/support/always.py", ALL),
        ("pictures/nobody_names.jpg", ALL),
        ("align/was_deleted.py", ALL),
        ("docs/img/search.png", set()),
    ],
)
def test_whose_tests_run(changed, tests):
    assert readers({changed}, TEXTS) == tests
