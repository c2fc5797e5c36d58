from __future__ import annotations

import json
import re
from graphlib import CycleError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_multideploy.catalog.order import dependents, waves
from airflow_multideploy.catalog.service import AtLeast, Service
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import SpecError
from airflow_multideploy.release.plan import Plan, make_plan, release_id
from tests.release.conftest import targets

NAMES = [f"t{number}" for number in range(7)]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    """Acyclic graphs whose catalog order says nothing about their dependencies."""
    order = draw(st.permutations(NAMES[: draw(st.integers(1, len(NAMES)))]))
    edges = {
        name: draw(st.lists(st.sampled_from(order[:place]), unique=True, max_size=3)) if place else []
        for place, name in enumerate(order)
    }
    return {name: edges[name] for name in sorted(edges)}


def depth(graph: dict[str, list[str]], name: str) -> int:
    return 1 + max((depth(graph, after) for after in graph[name]), default=-1)


def reached(graph: dict[str, list[str]], name: str, of: set[str]) -> bool:
    return name in of or any(reached(graph, after, of) for after in graph[name])


@given(graphs())
def test_each_target_stands_in_the_first_wave_that_its_dependencies_allow(graph: dict[str, list[str]]) -> None:
    found = waves(targets(graph))
    assert sorted(name for wave in found for name in wave) == sorted(graph)
    for number, wave in enumerate(found):
        assert wave
        assert list(wave) == [name for name in graph if name in wave]
        assert all(depth(graph, name) == number for name in wave)


@given(graphs(), st.sets(st.sampled_from(NAMES)))
def test_dependents_are_all_that_lead_to_one_of_them(graph: dict[str, list[str]], of: set[str]) -> None:
    of &= set(graph)
    assert dependents(targets(graph), of) == {name for name in graph if reached(graph, name, of)}


def test_a_circle_is_an_error() -> None:
    with pytest.raises(CycleError):
        waves(targets({"a": ["b"], "b": ["a"]}))


@given(st.text(), st.text(), st.integers(1, 99_999_999))
def test_a_release_id_fits_every_platform_and_is_the_same_everywhere(dag: str, run: str, number: int) -> None:
    made = release_id(dag, run, number)
    assert made == release_id(dag, run, number)
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,19}", made)
    assert made.startswith(release_id(dag, run))


def test_release_ids_differ_between_runs_dags_and_rollouts() -> None:
    made = {release_id(*a) for a in [("a", "bc"), ("ab", "c"), ("a", "bc", 2), ("a", "bc", 3), ("a\0b", "c")]}
    assert len(made) == 5


def service(graph: dict[str, list[str]] | None = None, **more: Any) -> Service:
    built: dict[str, TargetConfig] = targets({"aws": [], "gcp": [], "dc": ["aws"]} if graph is None else graph)
    return Service.model_validate({"artifact": {"image": "registry.test/shop"}, "targets": built, **more})


def plan(conf: dict[str, Any], made: Service | None = None, **more: Any) -> Plan:
    return make_plan("shop", made or service(), conf, dag_id="shop", run_id="run1", **more)


def problems(conf: dict[str, Any], made: Service | None = None) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        plan(conf, made)
    assert caught.value.service == "shop"
    return caught.value.problems


def test_a_plan_is_everything_that_later_steps_need_and_survives_json() -> None:
    made = plan({"version": "1.4.2", "reason": "why", "force": True})
    assert made.release.image == "registry.test/shop:1.4.2"
    assert (made.release.version, made.release.reason, made.release.force) == ("1.4.2", "why", True)
    assert made.release.release_id == release_id("shop", "run1")
    assert made.selected == ("aws", "gcp", "dc")
    assert made.waves == (("aws", "gcp"), ("dc",))
    assert not made.dry_run
    assert made.config("dc")["depends_on"] == [{"target": "aws", "when": "succeeded"}]
    assert Plan.model_validate(json.loads(json.dumps(made.dump()))) == made


def test_a_digest_pins_the_image() -> None:
    made = plan({"version": "1"}, digest="sha256:ab")
    assert (made.release.image, made.release.digest) == ("registry.test/shop@sha256:ab", "sha256:ab")


def test_the_services_own_version_is_released_when_the_run_names_none() -> None:
    made = service(version="9")
    assert [plan(conf, made).release.version for conf in ({}, {"version": None}, {"version": ""})] == ["9", "9", "9"]
    assert plan({"version": "10"}, made).release.version == "10"
    assert "conf.version: missing" in problems({})[0]


def test_a_selection_keeps_the_catalogs_order_and_drops_empty_waves() -> None:
    assert plan({"version": "1", "targets": ["dc"]}).waves == (("dc",),)
    assert plan({"version": "1", "targets": ["dc", "gcp", "dc"]}).selected == ("gcp", "dc")
    assert plan({"version": "1", "targets": None, "dry_run": True}).selected == ("aws", "gcp", "dc")


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"versoin": "1"}, "conf.versoin: unknown key"),
        ({5: "1"}, "conf.5: unknown key"),
        ({"version": "1 2"}, "conf.version: does not match"),
        ({"version": "1\n"}, "conf.version: does not match"),
        ({"version": 0}, "conf.version: does not match"),
        ({"targets": "aws"}, "conf.targets: expected a list"),
        ({"targets": [1]}, "conf.targets: expected a list"),
        ({"targets": 0}, "conf.targets: expected a list"),
        ({"targets": []}, "conf.targets: empty"),
        ({"targets": ["azure"]}, "conf.targets: no target 'azure'; there are: aws, gcp, dc"),
        ({"force": "yes"}, "conf.force: expected true or false"),
        ({"dry_run": None}, "conf.dry_run: expected true or false"),
        ({"reason": 0}, "conf.reason: expected a string"),
    ],
)
def test_a_conf_that_is_not_what_it_has_to_be_is_refused(conf: dict[Any, Any], said: str) -> None:
    assert [p for p in problems({"version": "1", **conf}) if p.startswith(said)]


def test_all_problems_of_a_conf_are_told_at_once() -> None:
    assert len(problems({"versoin": 1, "targets": ["x", "y"], "force": 1, "dry_run": 1, "reason": 1})) == 7


def test_a_selection_that_cannot_reach_the_quorum_is_refused_before_anything_is_written() -> None:
    made = service(success={"policy": AtLeast(at_least=2)})
    assert "select more" in problems({"version": "1", "targets": ["aws", "aws"]}, made)[0]
    assert plan({"version": "1", "targets": ["aws", "gcp"]}, made).selected == ("aws", "gcp")


def conditional() -> Service:
    """aws in every region, gcp in the US alone, dc after aws; a run may say the region and how many."""
    made = targets({"aws": [], "gcp": [], "dc": ["gcp"]})
    made["gcp"] = made["gcp"].model_copy(update={"when": 'params.region == "us"'})
    params = {"region": {"default": "eu", "enum": ["eu", "us"]}, "count": {"type": "integer"}}
    document = {"artifact": {"image": "registry.test/shop"}, "targets": made, "params": params}
    return Service.model_validate(document)


def test_a_target_whose_condition_is_not_met_is_skipped_with_the_reason() -> None:
    made = plan({"version": "1", "count": 1}, conditional())
    assert made.selected == ("aws", "dc")
    assert made.skipped == {"gcp": 'not when params.region == "us"'}
    assert made.waves == (("aws",), ("dc",))
    assert plan({"version": "1", "count": 1, "region": "us"}, conditional()).selected == ("aws", "gcp", "dc")


def test_previous_is_a_word_of_rollbacks_alone() -> None:
    assert problems({"version": "previous"}) == (
        "conf.version: previous is what a rollback goes to; set rollback: true, or name a version",
    )


def test_a_rollback_goes_where_it_is_told_to_whatever_the_conditions_and_the_quorum_say() -> None:
    back = {"version": "previous", "rollback": True}
    made = plan(back, conditional())
    assert made.selected == ("aws", "gcp", "dc"), "also where params would keep a release away"
    assert plan({**back, "targets": ["gcp"]}, conditional()).selected == ("gcp",)
    quorum = service(success={"policy": AtLeast(at_least=2)})
    assert plan({**back, "targets": ["aws"]}, quorum).service["success"] == {"policy": {"at_least": 1}}
    assert problems({**back, "count": "1"}, conditional()) == ("conf.count: expected an integer",)


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({}, "conf.count: missing; give an integer"),
        ({"count": "1"}, "conf.count: expected an integer"),
        ({"count": True}, "conf.count: expected an integer"),
        ({"count": 1, "region": "mars"}, "conf.region: is none of eu, us; take one of those"),
        (
            {"count": 1, "regoin": "us"},
            "conf.regoin: unknown key; known: version, targets, reason, dry_run, force, rollback, override, reg",
        ),
        ({"count": 1, "targets": ["gcp"]}, 'targets.gcp: not when params.region == "us"'),
    ],
)
def test_a_services_own_params_are_checked(conf: dict[str, Any], said: str) -> None:
    assert [p for p in problems({"version": "1", **conf}, conditional()) if p.startswith(said)]


def test_a_run_that_fails_fast_stops_when_its_policy_is_out_of_reach() -> None:
    strict = plan({"version": "1"}).fail_fast()
    assert strict.why([]) == ""
    assert strict.why(["mars"]) == ""
    assert strict.why(["gcp"]) == "stopped (fail_fast): gcp failed, and the policy can no longer be reached"
    quorum = plan({"version": "1"}, service(success={"policy": {"at_least": 2}})).fail_fast()
    assert (quorum.why(["gcp"]), quorum.why(["dc", "gcp"])[:29]) == ("", "stopped (fail_fast): dc, gcp ")
    marked = service({"aws": [], "gcp": []}, success={"policy": "critical"})
    marked.targets["aws"] = marked.targets["aws"].model_copy(update={"critical": True})
    assert plan({"version": "1"}, marked).fail_fast().why(["gcp"]) == ""
    assert plan({"version": "1"}, marked).fail_fast().why(["aws"])
