"""The form: what it shows, what Prefect's server refuses by it, and the check of the whole before a run begins."""

import json
import shutil
import typing

import pytest
from prefect.utilities.schema_tools import is_valid_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from align.arguments.commands import PARTS
from align.config.params import DEMO, parse_yaml, profile_names, write_params
from align.config.sections import SECTIONS
from align.errors import ConfigError, DataError
from align.project.declared import declared_outs
from align.services.git import git
from align.verbs import STAGES
from flows import approve
from flows.pipeline import data, pipeline
from flows.promote import promote
from flows.request import SHORTCUTS, Part, Request, inside, settled
from flows.run.context import RunContext
from flows.study import named_study
from tests.support import ROOT
from tests.support.dvc_projects import commit_all
from tests.support.params import PARAMS_FILE

SCHEMA = pipeline.parameters.model_dump()
FORM = SCHEMA["definitions"]["Request"]["properties"]


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_drop_down_has_the_stages_of_dvc_yaml():
    assert set(STAGES) == set(declared_outs(ROOT))
    for field in ("from_stage", "to_stage"):
        assert FORM[field]["enum"] == list(STAGES)
    assert FORM["profile"]["enum"] == [DEMO, *profile_names(ROOT)]
    assert tuple(FORM["only"]["enum"]) == PARTS == typing.get_args(Part)


def test_the_form_is_short_and_in_the_order_of_the_fields():
    hidden = ("name", "tags")  # Prefect's form asks for a name itself; tags are set by programs
    fields = [name for name in Request.model_fields if name not in hidden]
    assert list(FORM) == fields == sorted(FORM, key=lambda name: FORM[name]["position"])
    for name, field in FORM.items():
        assert field["title"] and field["description"], name
        assert "anyOf" not in field and "$ref" not in field, f"{name}: the form would show tabs"
        assert field.get("default", "") is not None, f"{name}: the form would send null"
    assert None not in SCHEMA["properties"]["request"]["default"].values()
    validate({"request": Request().model_dump()}, SCHEMA, raise_on_error=True)
    assert "properties" not in FORM["overrides"]  # two hundred fields
    assert FORM["num_steps"]["minimum"] == 1
    is_valid_schema(SCHEMA)


def test_a_field_says_what_counts_if_it_is_empty():
    """Nothing is filled in, which would count; and the server refuses what the section would."""
    for name, key in SHORTCUTS.items():
        said = FORM[name]["description"]  # for people: what it does, not what the parameter is called
        assert "Empty: as the profile has it." in said and key not in said and "default" not in FORM[name]
        section, inner = key.split(".")
        theirs = SECTIONS[section].model_json_schema()["properties"][inner]
        theirs = theirs.get("anyOf", [theirs])[0]
        words = ("title", "description", "position")
        assert {key: value for key, value in FORM[name].items() if key not in words} == (
            {key: value for key, value in theirs.items() if key not in words}
        )
    assert "Empty: ingest, " in FORM["from_stage"]["description"]
    assert "Empty: index, " in FORM["to_stage"]["description"]


def test_promote_asks_for_a_number_without_tabs():
    schema = promote.parameters.model_dump()
    version = schema["properties"]["version"]
    assert (
        version["type"] == "integer" and "anyOf" not in version and (version["default"], version["minimum"]) == (0, 0)
    )
    assert "0: the candidate" in version["description"]
    assert validate({"version": -1}, schema) and not validate({}, schema) and not validate({"version": 3}, schema)


def test_deployments_say_what_they_do():
    found = parse_yaml((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    names = [one["name"] for one in found]
    assert len(set(names)) == len(names) and "local" not in names
    assert all(one["tags"] and len(one["description"]) > 100 for one in found)
    internal = next(one for one in found if one["tags"] == ["internal"])
    assert f"approve/{internal['name']}" == approve.DEPLOYMENT and internal["entrypoint"] == "flows.approve.approve"
    assert internal["name"] == max(names)  # the last in the list


@pytest.mark.parametrize("request_", [
    {},
    {"name": "x", "profile": "paper", "only": "training", "to_stage": "pretrain", "seed": 3, "learning_rate": 0.1},
    {"overrides": {"filter.min_words": 4, "model.image_tower": "B0", "index.queries": None}},
    {"ref": None, "seed": None, "learning_rate": None, "training_pool": None, "overrides": {}},
    {"ref": "old", "overrides": {"a.key.of.another.revision": 1}},  # the run knows that revision
    {"training_pool": "gpu", "overrides": {"model.image_tower.width_coefficient": 0.5}},
    {"overrides": {"filter.min_word": 0}},  # the run says so
])  # fmt: skip
def test_the_server_takes_what_is_right(request_):
    validate({"request": request_}, SCHEMA, raise_on_error=True)
    Request.model_validate(request_)


@pytest.mark.parametrize(("request_", "named"), [
    ({"profile": "imagenet"}, "request.profile"),
    ({"only": "release"}, "request.only"),
    ({"to_stage": "pretain"}, "request.to_stage"),
    ({"num_steps": 0}, "request.num_steps"),
    ({"learning_rate": "fast"}, "request.learning_rate"),
    ({"training_pool": "gpu; rm"}, "request.training_pool"),
    ({"ref": "https://me:secret@host/branch"}, "request.ref"),
    ({"overrides": {"paths.archive": "s3://key:secret@bucket/x"}}, "paths.archive"),
    ({"ref": "x", "overrides": {"any.key": ["http://me:secret@host/"]}}, "any.key"),
    ({"name": "a&sig=secret"}, "request.name"),
    ({"seed": -1}, "request.seed"),
    ({"steps": 3}, "request"),
])  # fmt: skip
def test_the_server_refuses_by_name_before_it_records(request_, named):
    with pytest.raises(ValidationError) as error:
        validate({"request": request_}, SCHEMA, raise_on_error=True)
    assert named in str(error.value)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with this one's dvc.yaml and profiles and the tests' values, which no test changes.

    Revisions: `old` has another key than the sections here know, `long` another value and a profile of its own.
    """
    root = tmp_path_factory.mktemp("request") / "checkout"
    (root / "infra").mkdir(parents=True)
    shutil.copytree(ROOT / "infra/profiles", root / "infra/profiles")
    shutil.copy(ROOT / "dvc.yaml", root)
    text = PARAMS_FILE.read_text("utf-8")
    (root / "params.yaml").write_text(text.replace("  margin:", "  lowest_margin:"))
    git(root, "init", "--quiet")
    commit_all(root)
    git(root, "branch", "old")
    (root / "params.yaml").write_text(text)
    write_params(root / "params.yaml", {"pretrain.warmup_steps": 500})
    (root / "infra/profiles/own.yaml").write_text("filter: {min_words: 7}\n")
    commit_all(root)
    git(root, "branch", "long")
    (root / "params.yaml").write_text(text)
    (root / "infra/profiles/own.yaml").unlink()
    commit_all(root)
    return root


def test_profile_fields_and_overrides_in_this_order(checkout):
    overrides = {"pretrain.seed": 3, "paths.archive": "mine"}
    request = Request(profile="photographs", num_steps=40, seed=4, overrides=overrides)
    found = settled(checkout, request)
    values = found.overrides
    assert (values["ingest.source"], values["pretrain.batch_size"]) == ("folder", 64)  # the profile's
    assert (values["pretrain.num_steps"], values["paths.archive"], values["pretrain.seed"]) == (40, "mine", 3)
    assert found.profile == DEMO and all(getattr(found, name) is None for name in SHORTCUTS)
    assert settled(checkout, found) is found  # once; a run that Prefect resumes begins with what it has recorded:
    assert settled(checkout, Request.model_validate(found.model_dump())) == found
    assert settled(checkout, Request()).in_place and not found.in_place


def test_the_parts_of_a_run_take_what_was_read_at_its_start(tmp_path):
    for file in (ROOT / "dvc.yaml", PARAMS_FILE):
        shutil.copy(file, tmp_path)
    run = RunContext(root=tmp_path, checkout=tmp_path).with_stages(Request(to_stage="shard"))
    for file in tmp_path.iterdir():
        file.unlink()
    taken = data.validate_parameters({"run": run})["run"]
    assert [stage.name for stage in taken.chosen.stages] == ["ingest", "filter", "validate", "shard"]
    assert taken.params is run.params is run.model_copy(update={"mlflow_run_id": "0"}).params
    recorded = {"root", "checkout", "name", "stale", "pulled", "dirty", "mlflow_run_id", "mlflow_page", "tags"}
    assert data.serialize_parameters({"run": run})["run"].keys() == recorded  # by Prefect: not all of dvc.yaml


@pytest.mark.parametrize(("key", "same"), [
    ("pretrain.weight_decay", [312, 312.0, 3.12e2]),
    ("pretrain.learning_rate", [1, 1.0]),
    ("promote.margin", [0, 0.0, -0.0]),
    ("validate.dropped_share.image_nsfw", [[0, 1], [0.0, 1.0], [0, 1.0]]),
    ("model.image_tower.width_coefficient", [1, 1.0]),
    (
        "model.image_tower",
        [{"width_coefficient": 1, "depth_coefficient": 2}, {"depth_coefficient": 2.0, "width_coefficient": 1.0}],
    ),
    ("pretrain.extra_shards", [[{"path": "more", "digest": "d", "weight": weight}] for weight in (2, 2.0)]),
])  # fmt: skip
def test_equal_values_are_one_run(checkout, key, same):
    """The key of a run's worktree is made of this JSON: equal runs wait for each other, and share a branch."""
    found = {json.dumps(settled(checkout, Request(overrides={key: value})).overrides, sort_keys=True) for value in same}
    assert len(found) == 1


def test_what_differs_stays_as_it_was_given(checkout):
    given = {"pretrain.seed": 4, "pretrain.flip": True, "finetune.from": "models/../mine", "filter.languages": ["de"]}
    given |= {"pretrain.micro_batch": None, "model.image_tower": "B0", "paths.archive": "./crawl//x"}
    assert settled(checkout, Request(overrides=given)).overrides == given
    for key, value in (("pretrain.num_steps", 5000.0), ("pretrain.num_steps", "5000"), ("pretrain.flip", 1)):
        with pytest.raises(ConfigError, match="expected"):  # no other spelling: YAML and DVC would tell them apart
            settled(checkout, Request(overrides={key: value}))


@pytest.mark.parametrize(("request_", "message"), [
    ({"overrides": {"promote.margin": "much"}}, r"params\.yaml: parameter 'promote\.margin' = 'much'"),
    ({"overrides": {"paths.checkpoints": "/elsewhere"}}, r"paths\.checkpoints = /elsewhere.*writes there only"),
    ({"overrides": {"paths.raw": "data/other"}}, r"paths\.raw = data/other"),
    ({"overrides": {"paths.policy": "/elsewhere"}}, r"paths\.policy = /elsewhere: a run obeys the take-downs of its"),
    (
        {"overrides": {"paths.policy": "other"}, "ref": "long"},
        r"paths\.policy = other: a run obeys the take-downs of its",
    ),
    ({"profile": "own"}, r"--profile own: no readable file"),
    ({"to_stage": "pretain"}, r"stage 'pretain': dvc\.yaml has no such stage"),
    ({"only": "data", "from_stage": "pretrain"}, r"nothing to run"),
    ({"overrides": {"pretrain.seed": 10**4000}}, r"pretrain\.seed=10"),
    ({"overrides": {"pretrain.seed": nested(60)}}, r"pretrain\.seed=\[\["),
    ({"overrides": {"paths.archive": "\ud800"}}, r"the value is not UTF-8"),
    ({"overrides": {"filter.min_word": 4}}, r"min_word=4: unknown parameter .*did you mean filter\.min_words"),
    ({"overrides": {"filter.languages": "*a"}}, r"'filter\.languages' = '\*a'"),
    ({"overrides": {"model.text_tower": {"<<": "*a"}}}, r"model\.text_tower"),
])  # fmt: skip
def test_a_wrong_request_is_one_line_and_makes_nothing(checkout, request_, message):
    with pytest.raises(ConfigError, match=message) as error:
        settled(checkout, Request.model_validate(request_))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in checkout.iterdir()) == [".git", "dvc.yaml", "infra", "params.yaml"]


def test_the_values_that_count_are_those_of_the_revision(checkout):
    own = settled(checkout, Request(ref="long", profile="own"))
    assert own.overrides == {"filter.min_words": 7} and own.ref == "long"
    assert settled(checkout, Request(num_steps=400)).overrides == {"pretrain.num_steps": 400}
    with pytest.raises(ConfigError, match=r"long:params\.yaml: .*warmup_steps 500 must be less than num_steps 400"):
        settled(checkout, Request(ref="long", num_steps=400))
    with pytest.raises(ConfigError, match=r"^promote\.margin=.*unknown parameter.*\(not in old:params\.yaml\)"):
        settled(checkout, Request(ref="old", overrides={"promote.margin": 0.1}))
    with pytest.raises(DataError, match="'nowhere' names no commit"):
        settled(checkout, Request(ref="nowhere"))
    for odd in ("\0", "\ud800", "--all"):
        with pytest.raises(DataError, match="names no commit"):
            settled(checkout, Request(ref=odd))


def test_of_a_revision_with_other_sections_only_what_is_changed_is_checked(checkout, tmp_path):
    """`old` lacks a key that the classes here need: by itself that is no mistake of the request."""
    with pytest.raises(ConfigError, match="lowest_margin"):
        settled(checkout, Request(ref="old"))  # the same align/config (none), so all values are checked
    checkout = shutil.copytree(checkout, tmp_path / "checkout")
    (checkout / "align/config").mkdir(parents=True)
    (checkout / "align/config/release.py").write_text("margin = 0\n")
    commit_all(checkout)
    settled(checkout, Request(ref="old"))
    with pytest.raises(ConfigError, match=r"old:params\.yaml: parameter 'filter\.min_words' = 0"):
        settled(checkout, Request(ref="old", overrides={"filter.min_words": 0}))
    as_given = settled(checkout, Request(ref="old", overrides={"pretrain.learning_rate": 1})).overrides
    assert json.dumps(as_given) == '{"pretrain.learning_rate": 1}'  # it may have been a whole number there


@pytest.mark.parametrize("path", ["../out.yaml", "linked.yaml", "/etc/passwd", "a\0b/x.yaml", f"{'x' * 900}/y.yaml"])
def test_a_path_of_a_form_stays_in_the_checkout(tmp_path, path):
    root = tmp_path / "checkout"
    (root / "mine").mkdir(parents=True)
    (tmp_path / "out.yaml").touch()
    (root / "linked.yaml").symlink_to(tmp_path / "out.yaml")
    assert inside(root, "./mine/../mine/own.yml") == root / "mine/own.yml"
    with pytest.raises(DataError) as raised:
        inside(root, path)
    assert f"{path[:100]}: not in the checkout" in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize("named", ["../../../out", "a\0b", "\ud800", "../../../out.yaml"])
def test_a_name_of_a_study_leads_to_no_other_file(tmp_path, named):
    root = tmp_path / "checkout"
    (root / "infra").mkdir(parents=True)
    shutil.copytree(ROOT / "infra/studies", root / "infra/studies")
    (tmp_path / "out.yaml").symlink_to(ROOT / "infra/studies/paper.yaml")
    assert named_study(root, " paper ") == named_study(root, "infra/studies/paper.yaml")
    with pytest.raises(DataError, match="not in the checkout"):
        named_study(root, named)
