"""Addresses of databases: read from the environment, refused without being shown."""

import pytest

from align.errors import ConfigError
from align.services import postgresql
from align.services.postgresql import MLFLOW, PREFECT, for_sqlalchemy, given


@pytest.mark.parametrize(
    "url",
    ["mysql://me:pass-word@host/db", "postgresql://me:pass-word@host", "postgresql://me:pass-word@/db",
     "postgresql://me:pass-word@host:port/db", "postgresql://me:pass-word@host/db?sslmode=require", "pass-word",
     "postgresql://me:pass-word@[host/db"],
)  # fmt: skip
def test_another_address_is_refused_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MLFLOW, url)
    with pytest.raises(ConfigError) as error:
        given(MLFLOW)
    expected = "postgresql://<user>:<password>@host:port/database, without parameters"
    assert str(error.value) == f"ALIGN_MLFLOW_DATABASE_URL: expected {expected}"


def test_each_program_has_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "find_spec", lambda name: name)
    monkeypatch.setenv(MLFLOW, " ")
    assert given(MLFLOW) is None and for_sqlalchemy(PREFECT) is None
    for variable, driver in ((MLFLOW, "pg8000"), (PREFECT, "asyncpg")):
        monkeypatch.setenv(variable, "postgres://me:a%2Fb@host:5/db\n")
        assert for_sqlalchemy(variable) == f"postgresql+{driver}://me:a%2Fb@host:5/db"
    monkeypatch.setattr(postgresql, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"asyncpg is not installed; pip install align-mlops\[postgresql\]"):
        for_sqlalchemy(PREFECT)
