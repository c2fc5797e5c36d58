from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from airflow_multideploy.catalog.environments import merge
from airflow_multideploy.catalog.parse import is_schedule, parse_catalog, parse_service, split
from airflow_multideploy.catalog.schema import json_schema
from airflow_multideploy.catalog.service import AtLeast, Service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.testing.fake import FakeConfig
from tests.release.conftest import config_type

CANARY = "hunter2canary7f3a"
SECRETS = [CANARY, f"Bearer {CANARY}", f"https://joe:{CANARY}@host/x", f"ghp_{CANARY * 3}", f"AKIA{'A' * 16}{CANARY}"]


def shop(**changes: Any) -> dict[str, Any]:
    """A good service; None removes a key."""
    made: dict[str, Any] = {
        "owner": "team-shop",
        "artifact": {"image": "registry.test/shop"},
        "targets": {
            "aws": {"platform": "fake", "conn_id": "aws"},
            "gcp": {"platform": "fake", "conn_id": "gcp", "depends_on": ["aws"]},
        },
        **changes,
    }
    return {key: value for key, value in made.items() if value is not None}


def parse(document: Any, defaults: Any = None, name: Any = "shop") -> Service:
    return parse_service(name, document, defaults=defaults, config_type=config_type)


def problems(document: Any, defaults: Any = None, name: Any = "shop") -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        parse(document, defaults, name)
    assert caught.value.service == str(name)
    return caught.value.problems


def test_a_good_service() -> None:
    service = parse(shop(schedule="0 10 * * 2-4", version="1.2", success={"policy": {"at_least": 2}}))
    assert (service.owner, service.retries, service.deferrable) == ("team-shop", 2, True)
    assert service.success.policy == AtLeast(at_least=2)
    assert isinstance(service.targets["aws"], FakeConfig)
    assert list(service.targets) == ["aws", "gcp"]


def test_a_service_survives_json_as_a_run_freezes_it() -> None:
    service = parse(shop(tags=["a"], success={"policy": {"at_least": 1}}))
    assert parse(json.loads(json.dumps(service.model_dump(mode="json")))) == service


def test_defaults_lie_under_each_service_and_are_left_as_they_are() -> None:
    defaults = {"owner": "all", "rollback": {"cancel": "keep"}, "retries": 5}
    before = copy.deepcopy(defaults)
    service = parse(shop(owner=None, rollback={"strategy": "none"}), defaults)
    assert (service.owner, service.retries) == ("all", 5)
    assert (service.rollback.strategy, service.rollback.cancel) == ("none", "keep")
    assert defaults == before


@given(st.recursive(st.integers(), lambda d: st.dictionaries(st.sampled_from("abc"), d, max_size=3), max_leaves=9))
def test_merging_is_idempotent_and_what_is_laid_over_wins(document: Any) -> None:
    if isinstance(document, dict):
        assert merge(document, document) == document
        assert merge({}, document) == merge(document, {}) == document
        over = merge({"a": 1, "b": {"c": 2}}, document)
        assert all(over[key] == value for key, value in document.items() if not isinstance(value, dict))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"artefact": {}}, "artefact: unknown key; did you mean 'artifact'?"),
        ({"zzz": 1}, "zzz: unknown key; remove it"),
        ({"policy": "all"}, "policy: unknown key; did you mean 'success.policy'?"),
        ({"AtLeast": 1}, "AtLeast: unknown key"),
        ({"function-x": 1}, "function-x: unknown key"),
        ({"rollback": {"strategie": "all"}}, "rollback.strategie: unknown key; did you mean 'strategy'?"),
        ({"rollback": {"a": {}}, "tags": [{}]}, "tags.0: Input should be a valid string; write a string"),
        ({"build": {"contxt": "."}}, "build.contxt: unknown key; did you mean 'context'?"),
        ({"success": {"policy": {"at_least": 1, "most": 2}}}, "success.policy.most: unknown key"),
        ({"artifact": None}, "artifact: Field required; add it"),
        ({"artifact": "x"}, "artifact: expected a mapping; write one"),
        ({"artifact": {"image": "a:1"}}, "artifact.image: holds a tag"),
        ({"artifact": {"image": "-"}}, "artifact.image: String should match pattern"),
        ({"deferrable": "yes"}, "deferrable: Input should be a valid boolean; write true or false"),
        ({"version": 1.4}, "version: Input should be a valid string; write a string (quote it)"),
        ({"success": {"policy": "some"}}, "success.policy: Input should be 'all' or 'critical'; take one of those"),
        ({"success": {"policy": {"at_least": 3}}}, "success.policy.at_least: 3 is more than the 2 targets"),
        ({"success": {"policy": {"at_least": 0}}}, "success.policy.at_least: Input should be greater"),
        ({"schedule": "whenever", "version": "1"}, "schedule: is no cron expression"),
        ({"schedule": "@wheneverly", "version": "1"}, "schedule: is no cron expression"),
        ({"schedule": "@daily"}, "version: missing; a scheduled release"),
        ({"build": {"context": "."}}, "artifact.registry_conn_id: missing; a build pushes"),
        ({"targets": None}, "targets: expected a mapping with at least one target, got nothing; add a target"),
        ({"targets": {}}, "targets: is empty; add a target"),
        ({"targets": ["aws"]}, "targets: expected a mapping with at least one target, got list"),
        ({"targets": {"Aws": {}}}, "targets.Aws: the name does not match"),
        ({"targets": {"aws\n": {}}}, "targets.'aws\\n': the name does not match"),
        ({"targets": {5: {}}}, "targets.5: the name does not match"),
        ({"targets": {True: {}}}, "targets.True: the name is YAML's word for true or false"),
        ({"tags": 5}, "tags: expected a list; write one"),
        ({"targets": {"rollback": {}}}, "targets.rollback: the name is taken"),
        ({"targets": {"aws": 5}}, "targets.aws: expected a mapping, got int"),
        ({"targets": {"aws": {"conn_id": "c"}}}, "targets.aws.platform: missing"),
        (
            {"targets": {"aws": {"platform": "aws_ec", "conn_id": "c"}}},
            "targets.aws.platform: platform 'aws_ec' is not",
        ),
        ({"targets": {"aws": {"platform": "fake"}}}, "targets.aws.conn_id: Field required; add it"),
        (
            {"targets": {"aws": {"platform": "fake", "conn_ud": "c"}}},
            "targets.aws.conn_ud: unknown key; did you mean 'co",
        ),
        ({"params": {"Region": {}}}, "params.Region.[key]: "),
        ({"params": {"force": {}}}, "params.force: every run has one of that name; rename it"),
        ({"params": {"region": {"default": 1}}}, "params.region.default: expected a string"),
        ({"params": {"region": {"default": "x", "enum": ["eu"]}}}, "params.region.default: is none of eu; take one"),
        ({"params": {"region": {}}, "schedule": "0 1 * * *", "version": "1"}, "params.region.default: missing; a sche"),
        ({"max_parallel": 0}, "max_parallel: "),
    ],
)
def test_each_problem_names_its_path_and_a_remedy(change: dict[str, Any], said: str) -> None:
    found = problems(shop(**change))
    assert [p for p in found if p.startswith(said)], found


def test_a_list_is_called_empty_only_when_it_is() -> None:
    notify = {"notifier": "x.Notifier"}
    (said,) = problems(shop(notify=[{**notify, "events": []}]))
    assert said == "notify.0.events: is empty; add an entry, or leave the key out"
    (said,) = problems(shop(notify=[{**notify, "events": ["done"]}]))
    assert said.startswith("notify.0.events.0: Input should be 'started', ")


@pytest.mark.parametrize("schedule", ["@once", "@continuous", "@quarterly", "@daily", "*/5 * * * *"])
def test_what_airflow_takes_as_a_schedule_is_taken(schedule: str) -> None:
    assert parse(shop(schedule=schedule, version="1")).schedule == schedule


def graph(**edges: list[Any]) -> dict[str, Any]:
    return {n: {"platform": "fake", "conn_id": "c", "depends_on": after} for n, after in edges.items()}


def test_dependencies_have_to_exist_and_to_run_in_no_circle() -> None:
    assert problems(shop(targets=graph(a=[], b=["x"])))[0].startswith("targets.b.depends_on[0]: no target 'x'")
    assert "runs in a circle" in problems(shop(targets=graph(a=["c"], b=["a"], c=["b"])))[0]
    assert "a → a" in problems(shop(targets=graph(a=["a"])))[0]


def test_an_edge_to_a_broken_target_is_not_a_second_problem() -> None:
    targets = {**graph(b=["a"]), "a": {"platform": "fake"}}
    assert problems(shop(targets=targets)) == ("targets.a.conn_id: Field required; add it",)


def test_a_service_is_not_called_like_a_dag_of_ours() -> None:
    with pytest.raises(SpecError, match="name: is taken by a DAG of this package; rename the service"):
        parse_service("multideploy_reconcile", shop(), config_type=lambda _: FakeConfig)


@pytest.mark.parametrize("other", ["a", {"target": "a", "when": "failed"}])
def test_a_dependency_is_named_once(other: Any) -> None:
    found = problems(shop(targets=graph(a=[], b=["a", other])))
    assert found == ("targets.b.depends_on[1]: names 'a' again; keep one (`completed` is either end)",)


def test_a_critical_policy_without_a_critical_target_would_always_be_green() -> None:
    aws = {"platform": "fake", "conn_id": "c", "critical": False}
    found = problems(shop(success={"policy": "critical"}, targets={"aws": aws}))
    assert found == ("success.policy: critical, but every target is marked 'critical: false'; mark one true",)


def test_a_quorum_is_not_blamed_for_a_broken_target() -> None:
    document = shop(success={"policy": {"at_least": 2}})
    document["targets"]["gcp"]["platform"] = "gpc"
    assert problems(document) == ("targets.gcp.platform: platform 'gpc' is not installed; installed: fake",)


def test_all_problems_are_told_at_once() -> None:
    document = shop(zzz=1, deferrable=0, targets=graph(a=["x"]) | {"B": {}})
    assert len(problems(document)) == 4


@pytest.mark.parametrize("name", ["Shop", "1shop", "", "shop\n", "a" * 41, 5, None, "ünï"])
def test_a_service_with_a_bad_name_is_refused(name: Any) -> None:
    assert problems(shop(), name=name)[0].startswith("name: does not match")


@pytest.mark.parametrize(
    ("document", "defaults", "said"),
    [
        ([], None, "(whole): expected a mapping, got list"),
        (None, None, "(whole): expected a mapping, got nothing"),
        ({}, [], "defaults: expected a mapping, got list"),
    ],
)
def test_what_is_no_mapping_is_refused(document: Any, defaults: Any, said: str) -> None:
    assert problems(document, defaults)[0].startswith(said)


def test_a_document_that_holds_itself_is_refused() -> None:
    circular = shop()
    circular["more"] = circular
    assert "nested too deeply" in problems(circular)[0]
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert "nested too deeply" in problems(shop(a=deep))[0]
    assert "nested too deeply" in problems(circular, circular)[0]


def test_one_broken_service_harms_no_other() -> None:
    catalog = parse_catalog({"shop": shop(), "bad": shop(zzz=1), 7: shop()}, config_type=config_type)
    assert set(catalog.services) == {"shop"}
    assert set(catalog.errors) == {"bad", "7"}
    with pytest.raises(SpecError, match="got list"):
        parse_catalog([], config_type=config_type)


def test_a_file_holds_services_alone_or_with_defaults() -> None:
    assert split({"shop": 1, "cart": 2}) == ({"shop": 1, "cart": 2}, None)
    assert split({"services": {"shop": 1}}) == ({"shop": 1}, None)
    assert split({"services": {"shop": 1}, "defaults": {"owner": "a"}}) == ({"shop": 1}, {"owner": "a"})


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            {"services": {}, "default": {}},
            "default: unknown key beside 'services' and 'defaults'; did you mean 'defaults'?",
        ),
        (
            {"service": {}, "defaults": {}},
            "service: unknown key beside 'services' and 'defaults'; did you mean 'services'?",
        ),
        (
            {"services": {}, "shop": {}},
            "shop: unknown key beside 'services' and 'defaults'; put a service under 'services'",
        ),
        ({"defaults": {}}, "services: expected a mapping of service name to service, got nothing; add it"),
        ({"services": ["shop"]}, "services: expected a mapping of service name to service, got list; add it"),
    ],
)
def test_a_misspelt_layout_of_a_file_is_no_service(document: Any, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        split(document)
    assert caught.value.problems[0] == said


WORDS = """owner artifact image targets aws platform conn_id depends_on success policy at_least rollback build args
schedule version token password timeout AtLeast function- when"""
KEYS = (
    st.sampled_from(WORDS.split() + SECRETS[1:]) | st.text(max_size=6) | st.integers(0, 3) | st.none() | st.booleans()
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["fake", "all", "aws", "@daily", "* * * * *", "registry.test/shop", *SECRETS])
    | st.binary(max_size=3)
    | st.dates()
)
DOCUMENTS = st.recursive(
    SCALARS, lambda d: st.lists(d, max_size=3) | st.dictionaries(KEYS, d, max_size=4), max_leaves=12
)
PATHS = [
    ["owner"],
    ["artifact"],
    ["artifact", "image"],
    ["targets"],
    ["targets", "aws"],
    ["targets", "aws", "platform"],
]
PATHS += [["targets", "gcp", "depends_on"], ["success"], ["success", "policy"], ["build"], ["schedule"], ["version"]]
PATHS += [["targets", "aws", "password"], ["build", "args"], ["targets", "aws", "timeout"], ["tags"], []]


def holds(document: Any, path: list[str], value: Any) -> Any:
    """The document with a value at a path."""
    if not path:
        return value
    return {**document, path[0]: holds(document.get(path[0], {}), path[1:], value)}


@settings(max_examples=100)
@given(st.sampled_from(PATHS), DOCUMENTS, st.none() | DOCUMENTS, st.sampled_from(["shop", *SECRETS, 5]))
def test_whatever_stands_there_only_spec_errors_come_and_no_secret_in_any(
    path: list[str], value: Any, defaults: Any, name: Any
) -> None:
    try:
        parse_service(name, holds(shop(), path, value), defaults=defaults, config_type=config_type)
    except SpecError as error:
        for problem in error.problems or ("none at all",):
            assert re.match(r"\S.*: \S", problem, re.S), problem
        if name != CANARY:  # a bare word is no secret to anybody
            texts = [str(error), repr(error), *error.problems]
            assert not any(secret in text for text in texts for secret in SECRETS[1:])


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("key", ["password", "api_key", "Authorization", "token"])
@pytest.mark.parametrize("path", [[], ["artifact"], ["success"], ["build", "args"], ["targets"], ["targets", "aws"]])
def test_a_secret_anywhere_is_refused_by_its_path_and_never_shown(path: list[str], key: str, secret: str) -> None:
    found = problems(holds(shop(), [*path, key], secret))
    assert f"{'.'.join([*path, key])}: looks like a secret (not shown); keep it in an Airflow Connection" in found[0]
    assert CANARY not in "\n".join(found)


def test_the_schema_for_editors_agrees_with_the_parser() -> None:
    schema = json_schema({"fake": FakeConfig})
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"shop": shop(success={"policy": {"at_least": 1}})})
    assert not validator.is_valid({"Shop": shop()})
    for bad in BAD:
        assert not validator.is_valid({"shop": bad})


BAD = [shop(zzz=1), shop(artifact=None), shop(targets={})]
BAD += [shop(targets={"aws": target}) for target in ({"platform": "x"}, {"conn_id": "c"})]


def test_the_schema_for_editors_knows_both_layouts_of_a_file() -> None:
    validator = Draft202012Validator(json_schema({"fake": FakeConfig}))
    rest = shop(owner=None, artifact=None)
    rest["targets"]["gcp"] = {"timeout": 5}
    defaults = {
        "owner": "all",
        "artifact": {"registry_conn_id": "r"},
        "targets": {"gcp": {"platform": "fake"}, "azure": {"timeout": 9}},
    }
    assert validator.is_valid({"services": {"shop": shop()}})
    assert validator.is_valid({"services": {"shop": rest, "cart": shop()}, "defaults": defaults})
    for bad in (
        {"services": {"shop": rest}},
        {"services": {"shop": shop()}, "default": {}},
        {"services": {"Shop": shop()}, "defaults": {}},
        {"services": {"shop": shop(zzz=1)}, "defaults": {}},
        {"services": {"shop": shop()}, "defaults": {"artifact": {"imag": "x"}}},
        {"services": {"shop": shop()}, "defaults": {"targets": {"aws": {"platform": "fake", "timeout": "5"}}}},
        {"defaults": {}},
        *({"services": {"shop": each}} for each in BAD),
    ):
        assert not validator.is_valid(bad), bad


@pytest.mark.parametrize(("schedule", "taken"), [("0 0 29 2 *", True), ("0 0 30 2 *", False), ("@continuous", True)])
def test_a_schedule_that_never_comes_is_none(schedule: str, taken: bool) -> None:
    assert is_schedule(schedule) is taken
