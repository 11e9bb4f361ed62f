"""`python -m flows`: what it says where it is asked for no program."""

import pytest

from flows.__main__ import PROGRAMS, main


@pytest.mark.parametrize("argv", [[], ["--keep"], ["pipelines"], ["pipeline"], ["plan", "--keep"]])
def test_no_program_is_a_usage_error(argv, capsys):
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.err.count("usage: python -m flows ") == len(PROGRAMS) and said.out == ""
