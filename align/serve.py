"""`align serve`: search as a service on loopback, with a page for people; it follows the registry's champion.

The service itself is `align/search/service`. This verb stands above the stages, since a click on a picture leads
through to what `align trace` knows of it, and search may not read from the folders of other stages.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from align.arguments.commands import PORT, READY
from align.config import Params
from align.config.filter import FilterConfig
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.config.search import SearchConfig
from align.config.serve import ServeConfig
from align.display.console import show
from align.durable.cores import cores
from align.errors import AlignError, ConfigError, DataError
from align.formats.image_index import CATALOGUE, IndexedImage, IndexHeader
from align.formats.shards import MANIFEST, read_manifest
from align.local_stack import SEARCH_LOGIN_FILE
from align.services.signing import TRUST, is_required
from align.services.tracking.address import require_store
from align.web import HOST
from align.web.guard import Guard

if TYPE_CHECKING:
    from align.lineage.trace.pair_history import RuleResult
    from align.search.service.answers import PairShown, RuleShown
    from align.search.service.served import Folders, Release, Served
    from align.search.service.service import SearchService

#: Addresses that only this machine reaches.
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align serve`: serves until it is told to stop."""
    from align.search.service.app import POLICY, make_app
    from align.search.service.limits import Limits
    from align.web.server import require_free, serve

    port = args.port or _number(os.environ.get("ALIGN_SEARCH_PORT", str(PORT)))
    bind = os.environ.get("ALIGN_SERVER_BIND", HOST)
    login = os.environ.get("ALIGN_SEARCH_LOGIN")
    if bind not in _LOOPBACK and not login:
        raise ConfigError(
            f"ALIGN_SERVER_BIND={bind}: others reach that address, so ALIGN_SEARCH_LOGIN=user:password is needed"
        )
    if (args.local or args.index or args.model or args.ready) and is_required():
        raise ConfigError(f"{TRUST} is set, and only registered models are signed: serve the champion, or unset it")
    if login and ":" not in login:
        raise ConfigError("ALIGN_SEARCH_LOGIN: expected user:password")
    require_free(bind, port)  # before minutes of loading
    config = params.section(ServeConfig)
    own = args.local or args.index is not None or args.model is not None
    if own and args.ready:
        raise ConfigError("serve: give --ready alone, or --local, --index and --model")
    service = _service(params, _own_paths(params, args) if own else None, args.ready)
    names = os.environ.get("ALIGN_SERVER_NAMES", "").split()
    app = Limits(make_app(service), config, service.registry, by_client=not names)  # a proxy is one client
    guard = Guard(app, port, login, names, policy=POLICY, login_of=login_of(login))
    service.champion.start()
    show(f"search   http://{HOST}:{port}   stop with Ctrl-C")
    try:
        log = os.environ.get("ALIGN_SERVER_LOG")
        serve(guard, bind, port, max_connections=config.max_connections, log=Path(log) if log else None)
    finally:
        service.close()


def _own_paths(params: Params, args: argparse.Namespace) -> PathsConfig:
    """The paths with the model and the index that were named."""
    from align.search.given_model import given_model

    paths = params.section(PathsConfig)
    changes = {"index": args.index or paths.index, "finetuned": given_model(args.model, params)}
    return paths.model_copy(update=changes)


def _service(params: Params, own: PathsConfig | None, ready: Path | None) -> SearchService:
    from align.search.service.champion import Champion
    from align.search.service.fetched import OwnModel, ReadySearch, RegisteredChampion
    from align.search.service.served import Pictures
    from align.search.service.service import SearchService
    from align.search.service.take_downs import TakeDowns
    from align.services.tracking.tracker import Tracker

    paths, config = params.section(PathsConfig), params.section(ServeConfig)
    source: OwnModel | ReadySearch | RegisteredChampion
    if ready is not None:
        source = ReadySearch(ready)
    elif own is not None:
        source = OwnModel(own)
    else:
        try:
            require_store()
        except DataError as error:
            given = f"align serve --ready {READY}" if READY.is_dir() else "dvc repro && align serve --local"
            command = "align serve --local" if (paths.index / "index.json").is_file() else given
            raise DataError(f"{error}; without a registry: `{command}`") from None
        source = RegisteredChampion(params.section(RegisterConfig).model_name, Tracker(), paths)
    # Call it before torch is imported, which happens only with a champion; a pool that torch has made does not shrink.
    os.environ.setdefault("OMP_NUM_THREADS", str(config.num_threads or max(cores() - 1, 1)))
    return SearchService(
        config,
        text_weight=params.section(SearchConfig).text_weight,
        champion=Champion(source, config.poll_s, TakeDowns(paths.policy), _loaded),
        pictures=Pictures(paths.shards, params.section(StoreConfig)),
        pair_of=_PairOf(params),
    )


def _loaded(release: Release, folders: Folders) -> Served:
    from align.search.service.served import load, require_quick

    require_quick(folders.model)
    return load(release, folders)


class _PairOf:
    """See `align.search.service.service.PairOf`."""

    def __init__(self, params: Params) -> None:
        self._paths, self._filter = params.section(PathsConfig), params.section(FilterConfig)

    def __call__(self, item: IndexedImage, header: IndexHeader) -> PairShown:
        if item.split == CATALOGUE:
            return pair_of_index(item, header, "The index is of a catalogue: no filter has seen it.")
        if not any(self._paths.raw.glob("*.parquet")):
            return pair_of_index(item, header, "The data itself is not here. This is what the index knows.")
        try:
            return self._of_data(item, header)
        except AlignError as error:
            return pair_of_index(item, header, f"This is what the index knows, since {error}")

    def _of_data(self, item: IndexedImage, header: IndexHeader) -> PairShown:
        from align.lineage.trace.pair_history import look_up
        from align.lineage.versions.raw_pairs import find_pairs
        from align.search.service.answers import PairShown

        paths = self._paths
        rows = [row for row in find_pairs(paths.raw, "key", [item.key]) if row["sha256"] == item.image_id]
        if not rows:
            raise DataError(f"{paths.raw} has another picture with key {item.key}, or none: it is another version")
        history = look_up(
            rows[0], self._filter, filtered=paths.filtered, report=paths.reports / "filter", policy=paths.policy
        )
        notes = [f"cuts: {history['cuts_line']}"] if history["cuts_line"] else []
        if not _is_version(paths.shards, header.shards_digest):
            notes.append("the data here is of another version than the index; its rules may have been others")
        if history["opted_out"]:
            notes.append(f"taken down: {history['opted_out']['kind']} {history['opted_out']['value']}")
        decision = history["decision"]
        return PairShown(
            text=decision["text"] if decision else None,
            kept=decision["keep"] if decision else None,
            rules=list(map(_shown, history["rules"])),
            notes=notes,
        )


def pair_of_index(item: IndexedImage, header: IndexHeader, note: str) -> PairShown:
    """The decision as the index knows it: shards hold only kept pairs, which no rule drops."""
    from align.filter.rules import RULES
    from align.lineage.trace.pair_history import rule_result
    from align.search.service.answers import PairShown

    codes = [*(code for code in RULES if code in header.rules), *(code for code in header.rules if code not in RULES)]
    rules = [_shown(rule_result(code, header.rules[code], {}, [])) for code in codes]
    return PairShown(text=item.texts[0], kept=True, rules=rules, notes=[note])


def _shown(rule: RuleResult) -> RuleShown:
    from align.lineage.trace.pair_history import rule_values
    from align.search.service.answers import RuleShown

    return RuleShown(
        rule=rule["rule"], what=rule["what"], drops_where=rule["drops_where"], verdict=rule["verdict"],
        values=rule_values(rule["values"]),
    )  # fmt: skip


def _is_version(shards: Path, digest: str) -> bool:
    """Whether a folder has the shards of this digest; a folder without shards may have had them."""
    return not (shards / MANIFEST).is_file() or read_manifest(shards).digest == digest


def login_of(login: str | None) -> str:
    """Where people find the user and the password that it asks for: under `make up`, a login of the checkout."""
    try:
        own = SEARCH_LOGIN_FILE.read_text("utf-8").strip()
    except (OSError, ValueError):
        own = ""
    if login and login == own:
        return f"in {SEARCH_LOGIN_FILE}"
    return "of ALIGN_SEARCH_LOGIN, which the server was started with"


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"ALIGN_SEARCH_PORT={text}: expected a port, 1 to 65535")
    return int(text)
