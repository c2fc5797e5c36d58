"""One service in several environments: what each of them is, what is wrong with it, and where that was written."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from airflow_multideploy.catalog.environments import expand
from airflow_multideploy.catalog.parse import Catalog, parse_catalog
from airflow_multideploy.catalog.promotion import Required
from airflow_multideploy.catalog.schema import json_schema
from airflow_multideploy.release.contract import Release
from airflow_multideploy.release.journal import Entry, Journal, Phase
from airflow_multideploy.release.promotion import Released
from airflow_multideploy.release.status import Status
from airflow_multideploy.testing.fake import FakeConfig, MemoryStore
from tests.release.conftest import IMAGE, config_type


def shop(**environments: Any) -> dict[str, Any]:
    targets = {name: {"platform": "fake", "conn_id": "c"} for name in ("aws", "gcp")}
    return {"artifact": {"image": IMAGE}, "targets": targets, "environments": environments}


def parse(document: Any, defaults: Any = None) -> Catalog:
    return parse_catalog(document, defaults=defaults, config_type=config_type)


def problems(document: Any, service: str, defaults: Any = None) -> tuple[str, ...]:
    return parse(document, defaults).errors[service].problems


def test_each_environment_is_a_service_and_the_service_itself_is_none() -> None:
    found = parse({"shop": shop(dev={}, prod={"owner": "ops"}), "cart": shop() | {"environments": None}})
    assert {name: service.environment for name, service in found.services.items()} == {
        "shop-dev": "dev",
        "shop-prod": "prod",
        "cart": None,
    }
    assert found.services["shop-prod"].owner == "ops"


def test_the_nearest_word_counts_and_null_removes() -> None:
    service = shop(
        dev={"retries": 1, "tags": ["a"], "targets": {"aws": {"timeout": 5, "poll_interval": 1}}},
        prod={"inherits": "dev", "tags": ["b"], "targets": {"aws": {"timeout": 9, "poll_interval": None}, "gcp": None}},
    )
    defaults = {"retries": 7, "owner": "all", "targets": {"gcp": {"timeout": 3}}}
    prod = parse({"shop": service}, defaults).services["shop-prod"]
    assert (prod.owner, prod.retries, prod.tags) == ("all", 1, ("b",))
    assert list(prod.targets) == ["aws"], "not even the defaults bring it back"
    assert (prod.targets["aws"].timeout, prod.targets["aws"].poll_interval) == (
        9,
        FakeConfig.model_fields["poll_interval"].default,
    )


def test_environments_may_stand_in_the_defaults_and_a_service_may_decline_them() -> None:
    plain = {key: value for key, value in shop().items() if key != "environments"}
    found = parse({"shop": plain, "cart": {**plain, "environments": None}}, {"environments": {"dev": {}, "prod": {}}})
    assert (sorted(found.services), found.errors) == (["cart", "shop-dev", "shop-prod"], {})


def test_who_promotes_releases_what_the_other_one_built_and_asks_before() -> None:
    service = shop(
        dev={},
        staging={"inherits": "dev", "promote": {"from": "dev", "bake": 60}},
        prod={"inherits": "staging", "promote": {"from": "staging", "approve": {"users": ["alice"]}}},
    ) | {"artifact": {"image": IMAGE, "registry_conn_id": "r"}, "build": {"context": "."}}
    found = parse({"shop": service}).services
    assert [each.build is not None for each in found.values()] == [True, False, False]
    staging, prod = found["shop-staging"].promote, found["shop-prod"].promote
    assert staging is not None
    assert prod is not None
    assert (staging.source, staging.bake, prod.source, prod.bake) == ("shop-dev", 60, "shop-staging", None)
    assert found["shop-staging"].approval is None
    assert found["shop-prod"].approval is not None
    assert found["shop-prod"].approval.users == ("alice",)
    again = parse({name: each.model_dump(mode="json") for name, each in found.items()})
    assert again.services == found, "a run's frozen config is the expanded one"


@pytest.mark.parametrize(
    ("environments", "said"),
    [
        (
            {"prod": {"targets": {"aws": {"tmeout": 1}}}},
            "environments.prod.targets.aws.tmeout: unknown key; did you me",
        ),
        ({"prod": {"ownr": "x"}}, "environments.prod.ownr: unknown key; did you mean 'owner'?"),
        (
            {"dev": {"retries": "x"}, "prod": {"inherits": "dev"}},
            "environments.dev.retries: ",
        ),
        ({"prod": {"targets": {"gcp": {"conn_id": 1}}}}, "environments.prod.targets.gcp.conn_id: "),
        ({"prod": {"artifact": None}}, "environments.prod.artifact: Field required"),
        ({"prod": {"targets": {"aws": None, "gcp": None}}}, "environments.prod.targets: is empty; add a target"),
        ({"prod": {"inherits": "dev"}}, "environments.prod.inherits: no environment 'dev'; there are: prod"),
        ({"prod": {"promote": {"from": "dev"}}}, "environments.prod.promote.from: no environment 'dev'"),
        ({"prod": {"promote": {"bake": 1}}}, "environments.prod.promote.from: Field required"),
        ({"prod": {"environment": "x"}}, "environments.prod.environment: is set by environments; remove it"),
        ({"prod": {"environments": {}}}, "environments.prod.environments: unknown key"),
        ({"prod": 3}, "environments.prod: expected a mapping"),
        (
            {"dev": {}, "prod": {"promote": {"from": "dev"}, "schedule": "@daily", "version": "1"}},
            "environments.prod.sche",
        ),
        (
            {"dev": {}, "prod": {"promote": {"from": "dev"}, "build": {"context": "."}}},
            "environments.prod.build: a promoted release is not built again; remove it",
        ),
        (
            {"dev": {}, "prod": {"promote": {"from": "dev", "approve": {"user": []}}}},
            "environments.prod.promote.approve.user: unknown key",
        ),
        (
            {"dev": {"inherits": "prod"}, "prod": {"inherits": "dev"}},
            "environments: inherits runs in a circle: ",
        ),
        (
            {"dev": {"promote": {"from": "prod"}}, "prod": {"promote": {"from": "dev"}}},
            "environments: promote.from runs in a circle: ",
        ),
        ({"prod": {"requires": {"shop-prod": "1"}}}, "environments.prod.requires.shop-prod: is the service itself"),
        ({"prod": {"requires": {"pay": ">>1"}}}, "environments.prod.requires.pay.version: is neither"),
    ],
)
def test_a_problem_names_the_environment_in_which_it_was_written(environments: Any, said: str) -> None:
    found = problems({"shop": shop(**environments), "fine": shop(prod={})}, "shop-prod")
    assert [p for p in found if p.startswith(said)], found
    assert "fine-prod" in parse({"shop": shop(**environments), "fine": shop(prod={})}).services


@pytest.mark.parametrize("environments", [{}, [], "prod"])
def test_without_any_environment_the_service_shows_the_problem(environments: object) -> None:
    assert problems({"shop": shop() | {"environments": environments}}, "shop")[0].startswith(
        "environments: expected a "
    )


@pytest.mark.parametrize("name", ["Prod", "", "x" * 40, 5, True])
def test_the_name_of_the_dag_has_to_be_one(name: object) -> None:
    found = parse({"shop": shop() | {"environments": {name: {}, "dev": {}}}})
    assert not found.services
    assert any(f"environments.{name}: it and the DAG's name" in p for p in found.errors["shop-dev"].problems)


@pytest.mark.parametrize(
    "others",
    [{"shop-eu-prod": shop() | {"environments": None}}, {"shop-eu": shop(prod={})}],
    ids=["a service", "an environment"],
)
def test_two_that_would_be_called_the_same_are_both_refused(others: dict[str, Any]) -> None:
    document = {"shop": shop(**{"eu-prod": {}, "dev": {}}), **others}
    for order in (document, dict(reversed(document.items()))):
        found = parse(order)
        assert list(found.services) == ["shop-dev"]
        assert "twice" in found.errors["shop-eu-prod"].problems[0]
        assert isinstance(expand(order, only="shop-eu-prod")["shop-eu-prod"], Exception), "a worker sees the same"


def test_an_editor_is_told_the_same() -> None:
    validator = Draft202012Validator(json_schema({"fake": FakeConfig}))
    good = shop(dev={}, prod={"inherits": "dev", "targets": {"gcp": None}, "promote": {"from": "dev", "approve": True}})
    for document in ({"shop": good}, {"services": {"shop": good}}, {"services": {"shop": good}, "defaults": {}}):
        assert validator.is_valid(document), document
    for bad in (
        shop(prod={"ownr": 1}),
        shop(prod={"targets": {"aws": {"tmeout": 1}}}),
        shop(),
        shop(prod={}) | {"x": 1},
    ):
        assert not validator.is_valid({"shop": bad}), bad


@pytest.mark.parametrize(
    ("asked", "met", "unmet"),
    [
        (">=1.4", ("1.4", "v1.4.0", "2.0rc1"), ("1.3.9", "1.4rc1", "nightly")),
        (">=1.4,<2", ("1.9",), ("2.0", "1.0")),
        ("1.4", ("1.4",), ("1.4.0", "1.5")),
        ("release-7", ("release-7",), ("release-8", "7")),
        ("==1.4.*", ("1.4.9",), ("1.5", "main")),
    ],
)
def test_a_version_is_compared_as_a_version_or_else_as_a_text(
    asked: str, met: tuple[str, ...], unmet: tuple[str, ...]
) -> None:
    required = Required(version=asked)
    assert [v for v in met if not required.met_by(v)] == [v for v in unmet if required.met_by(v)] == []


def release(version: str) -> Release:
    return Release(service="shop-dev", version=version, image=f"{IMAGE}:{version}", release_id=f"r{version}")


def released(**changes: Any) -> Released:
    said = {
        "service": "shop-dev",
        "status": Status.SUCCEEDED,
        "version": "2",
        "image": f"{IMAGE}:2",
        "dag_id": "shop-dev",
    }
    targets = {"aws": Phase.SUCCEEDED, "gcp": Phase.UNCHANGED}
    return Released(**{**said, "run_id": "r", "release_id": "r2", "targets": targets, **changes})


def journals(**live: str) -> dict[str, Journal]:
    found = {target: Journal(MemoryStore()) for target in ("aws", "gcp")}
    for target, version in live.items():
        found[target].remember_live(release(version))
    return found


def test_a_release_is_gone_when_any_target_of_its_runs_something_else() -> None:
    assert released().gone(journals(aws="2", gcp="2")) == []
    assert released().gone(journals(aws="2", gcp="1")) == ["shop-dev/gcp runs 1"]
    assert released().gone(journals(aws="2")) == ["shop-dev/gcp runs something unknown"]


def test_targets_that_went_back_or_that_no_condition_wanted_are_not_asked_for_it() -> None:
    for phase in (Phase.ROLLED_BACK, Phase.SKIPPED):
        assert released(targets={"aws": Phase.SUCCEEDED, "gcp": phase}).gone(journals(aws="2", gcp="1")) == []


def test_a_release_to_some_targets_is_not_whole_until_the_others_run_it_too() -> None:
    part = released(targets={"aws": Phase.SUCCEEDED, "gcp": Phase.SKIPPED}, left_out=("gcp",))
    assert part.gone(journals(aws="2", gcp="1")) == ["shop-dev/gcp runs 1"]
    assert part.gone(journals(aws="2", gcp="2")) == []


def test_a_release_is_gone_while_another_one_is_under_way() -> None:
    found = journals(aws="2", gcp="2")
    entry = Entry(
        service="shop-dev", target="aws", config={}, release=release("3"), dag_id="shop-dev", run_id="x", touched=True
    )
    found["aws"].write(entry)
    assert released().gone(found) == ["shop-dev/aws is being released: 3"]
    found["aws"].write(entry.to(Phase.ROLLED_BACK, settled=True))
    assert released().gone(found) == []


def test_only_a_release_that_all_targets_took_is_promoted_unless_it_is_said_otherwise() -> None:
    assert released().unfit(degraded=False) == ""
    assert (
        released(status=Status.DEGRADED).unfit(degraded=False)
        == "is degraded, which is promoted only with promote.degraded"
    )
    assert released(status=Status.DEGRADED).unfit(degraded=True) == ""
    assert released(rollback=True).unfit(degraded=True) == "a rollback is not promoted"


@pytest.mark.parametrize(
    ("image", "digest", "into", "same"),
    [
        ("r.test/shop@sha256:a", "sha256:a", "r.test/shop", "r.test/shop@sha256:a"),
        ("r.test/shop@sha256:a", "sha256:a", "shop", "r.test/shop@sha256:a"),
        ("r.test/shop@sha256:a", "sha256:a", "copy.test/shop", "copy.test/shop@sha256:a"),
        ("r.test:5000/shop:2", None, "r.test:5000/shop", "r.test:5000/shop:2"),
        ("r.test/shop:2", None, "copy.test/shop", "copy.test/shop:2"),
    ],
)
def test_the_same_bits_in_another_repository(image: str, digest: str | None, into: str, same: str) -> None:
    assert released(image=image, digest=digest).image_in(into) == same
