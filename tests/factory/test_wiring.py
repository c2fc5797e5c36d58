"""Hand-written DAGs: what they may be, and that the rest is refused in one sentence when the DAG is parsed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator, Context, TaskGroup, task, task_group

from airflow_multideploy import DeployOperator, finish
from airflow_multideploy.operators.aws import AwsEcsDeployOperator
from airflow_multideploy.operators.build import BuildImageOperator
from airflow_multideploy.operators.clock import Final
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.testing.fake import MemoryStore
from tests.simulation.runs import effective_leaves

IMAGE = "registry.example.com:5000/shop"


@pytest.fixture
def dag() -> Iterator[DAG]:
    with DAG("shop", schedule=None) as made:
        yield made


def deploy(task_id: str, **arguments: Any) -> AwsEcsDeployOperator:
    """One target, as a team writes it."""
    given = {"conn_id": "aws", "cluster": "main", "service": "shop", "image": IMAGE, "version": "5.1", **arguments}
    return AwsEcsDeployOperator(task_id=task_id, **given)


def parsed(dag: DAG) -> None:
    """What Airflow does with a DAG once its file has run."""
    DagBag(dag_folder="/dev/null", collect_dags=False).bag_dag(dag)


def refused(make: Callable[[], object]) -> str:
    """The one sentence with which it is refused."""
    with pytest.raises(ValueError, match=r"; |, ") as caught:
        make()
    said = str(caught.value)
    assert "\n" not in said
    assert "pydantic" not in said
    return said


# --- groups, edges and names ------------------------------------------------------------------------------------------


def test_deploys_in_task_groups_have_targets_and_rollbacks_of_their_own(dag: DAG) -> None:
    deploys = []
    for region in ("eu", "us"):
        with TaskGroup(region):
            deploys.append(deploy("aws"))
    first, second = deploys
    between = EmptyOperator(task_id="look")
    first >> between >> second
    finalize = finish(deploys)
    parsed(dag)
    assert [each.target for each in deploys] == ["eu.aws", "us.aws"]
    assert dag.get_task("rollback.us.aws").downstream_task_ids >= {"rollback.eu.aws"}
    assert effective_leaves(dag) == [finalize.task_id] == ["finalize"]


def test_an_arrow_between_task_groups_is_an_edge(dag: DAG) -> None:
    with TaskGroup("eu") as before, TaskGroup("prod"):
        first = deploy("aws")
    with TaskGroup("us") as after:
        second = deploy("aws")
    before >> after
    finish([first, second])
    parsed(dag)
    assert first.target == "eu.prod.aws"
    assert dag.get_task("rollback.us.aws").downstream_task_ids >= {"rollback.eu.prod.aws"}


@pytest.mark.parametrize("name", ["EU.aws", "1st", "a" * 200, "_x-1"])
def test_a_target_may_be_called_as_tasks_may(dag: DAG, name: str) -> None:
    finish([deploy(name), deploy("other")])
    parsed(dag)
    assert dag.has_task(f"rollback.{name}")


NAMELESS = ("größe", "eu aws", "eu/aws", "-x", ".", "x\n", "a" * 201)


@pytest.mark.parametrize(("key", "name"), [*product(("target", "service_name"), NAMELESS), ("target", "journal")])
def test_a_name_that_no_journal_or_asset_can_have_is_refused(dag: DAG, key: str, name: str) -> None:
    assert refused(lambda: deploy("aws", **{key: name})).startswith(f"aws: {key}: ")


@pytest.mark.parametrize(
    "names", [("EU.aws", "eu-aws", "eu_aws", "eu.aws"), ("_", "__", "-x-"[1:], "a" * 200, "A" * 200)]
)
def test_targets_that_are_called_like_tasks_are_told_apart_where_names_are_labels(names: tuple[str, ...]) -> None:
    config = {
        "platform": "argo_workflows",
        "conn_id": "argo",
        "namespace": "ci",
        "template": "t",
        "parameters": {"i": "${image}"},
    }
    keys = [adapter(config, service="shop", target=name)._key("r0123456789-2") for name in names]  # type: ignore[attr-defined]
    assert len(set(keys)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", key) for key in keys), keys


def test_two_deploys_of_one_release_with_one_target_are_refused(dag: DAG) -> None:
    said = refused(lambda: finish([deploy("a", target="aws"), deploy("b", target="aws")]))
    assert said == "finish: deploys: a and b both have the target 'aws'; give each a target of its own"


def test_an_edge_that_comes_after_the_tail_is_refused(dag: DAG) -> None:
    first, second = deploy("a"), deploy("b")
    finish([first, second])
    first >> EmptyOperator(task_id="between") >> second
    assert refused(lambda: parsed(dag)).startswith("b: was put behind a after finish was called; wire the deploys")


def test_a_deploy_that_no_tail_has_is_refused(dag: DAG) -> None:
    finish([deploy("a")])
    deploy("b", service_name="other")
    assert refused(lambda: parsed(dag)).startswith("b: no finish has it among its deploys, so it would never go back")


def test_what_follows_a_release_waits_for_its_end(dag: DAG) -> None:
    finalize = finish([deploy("a")])
    finalize >> EmptyOperator(task_id="tell")
    parsed(dag)
    dag.get_task("deploys_ended") >> EmptyOperator(task_id="early")
    assert refused(lambda: parsed(dag)).startswith("early: waits for deploys_ended, which ends before the release does")


@pytest.mark.parametrize("rule", ["all_done", "one_failed"])
def test_what_follows_a_release_does_not_paint_it_green(dag: DAG, rule: str) -> None:
    finalize = finish([deploy("a")])
    after = EmptyOperator(task_id="tell", trigger_rule=rule)
    finalize >> EmptyOperator(task_id="between") >> after
    assert refused(lambda: parsed(dag)).startswith(f"tell: comes after finalize with trigger rule {rule}, so a failed")
    after.as_teardown()
    parsed(dag)
    assert "tell" not in effective_leaves(dag)


# --- several services -------------------------------------------------------------------------------------------------


def test_two_releases_in_one_dag_each_with_its_own_tail(dag: DAG) -> None:
    ends = [finish([deploy("a", service_name="shop")]), finish([deploy("b", service_name="shop.cart")])]
    ends.append(finish([deploy("c", service_name="stock")], group="last", strategy="manual"))
    parsed(dag)
    assert [end.task_id for end in ends] == ["finalize", "shop_cart.finalize", "last.finalize"]
    assert sorted(effective_leaves(dag)) == sorted(end.task_id for end in ends)
    assert {"deploys_ended", "aggregate_status", "rollback.a"} <= set(dag.task_ids)
    assert {"shop_cart.deploys_ended", "shop_cart.rollback.b", "last.decide", "last.rollback.c"} <= set(dag.task_ids)
    assert (ends[2].aggregate_task_id, ends[2].decide_task_id) == ("last.aggregate_status", "last.decide")
    assert ends[1].ended_task_id == "shop_cart.deploys_ended"
    parsed(dag)


def test_a_tail_stands_in_the_task_group_that_is_there(dag: DAG) -> None:
    with TaskGroup("cart"):
        inner = deploy("a", service_name="cart")
    assert finish([inner], group="cart").task_id == "cart.finalize"
    parsed(dag)


def test_deploys_of_two_services_in_one_release_are_refused(dag: DAG) -> None:
    said = refused(lambda: finish([deploy("a", service_name="one"), deploy("b", service_name="two")]))
    assert said.startswith(
        "finish: deploys: are of 2 services (one, two), and a release is of one; call finish once for"
    )


def test_two_tails_of_one_service_are_refused(dag: DAG) -> None:
    finish([deploy("a")])
    assert refused(lambda: finish([deploy("b")])).startswith("finish: finalize ends a release of 'shop' already; ")


@pytest.mark.parametrize("deploys", [[], [EmptyOperator(task_id="x")], EmptyOperator(task_id="x")])
def test_what_is_no_deploy_is_refused(dag: DAG, deploys: Any) -> None:
    assert refused(lambda: finish(deploys)).startswith("finish: deploys: ")


def test_a_deploy_alone_is_a_release(dag: DAG) -> None:
    finish(deploy("a"))  # type: ignore[arg-type]
    parsed(dag)


# --- mapping ----------------------------------------------------------------------------------------------------------


def test_a_loop_over_targets_is_the_way(dag: DAG) -> None:
    finish([deploy(f"deploy_{region}", region=region) for region in ("eu-west-1", "us-east-1")])
    parsed(dag)
    assert {"rollback.deploy_eu-west-1", "rollback.deploy_us-east-1"} <= set(dag.task_ids)


def test_a_mapped_deploy_is_refused_with_the_loop(dag: DAG) -> None:
    said = refused(lambda: AwsEcsDeployOperator.partial(task_id="aws", conn_id="aws").expand(region=["a", "b"]))
    assert said == (
        "aws: cannot be mapped, because each target has a journal and a rollback task of its own; make one for each: "
        "[AwsEcsDeployOperator(task_id=f'deploy_{region}', …) for region in REGIONS]"
    )


def test_a_deploy_in_a_mapped_task_group_is_refused(dag: DAG) -> None:
    @task_group
    def region(name: str) -> None:
        deploy("aws", region=name)

    assert refused(lambda: region.expand(name=["a", "b"])).startswith("region.aws: cannot be mapped, because")


# --- image and version ------------------------------------------------------------------------------------------------

DIGEST = "sha256:" + "0" * 64


def resolved(image: str, version: str = "", **arguments: Any) -> tuple[str, str, str | None]:
    """Image, version and digest that a deploy releases."""
    with DAG("shop", schedule=None):
        task = deploy("aws", image=image, version=version, **arguments)
    release, _ = task._resolve(Running(task))
    return release.image, release.version, release.digest


class Running(dict[str, Any]):
    """As much of a task's context as a release is made from."""

    def __init__(self, task: BaseOperator) -> None:
        self.pushed: dict[str, Any] = {}
        super().__init__(run_id="r1", ti=self, params={"version": "5.1", "image": IMAGE})
        if task.template_fields and isinstance(task, DeployOperator):
            task.render_template_fields(Context(**self), task.get_template_env())

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.mark.parametrize("said", ["5.1", "{{ params.version }}"])
def test_an_image_without_a_tag_is_that_of_the_version(said: str) -> None:
    assert resolved(IMAGE, said) == (f"{IMAGE}:5.1", "5.1", None)
    assert resolved(f"{IMAGE}:{said}", said) == (f"{IMAGE}:5.1", "5.1", None)
    assert resolved(f"{IMAGE}:{said}") == (f"{IMAGE}:5.1", "5.1", None)
    assert resolved(f"{IMAGE}@{DIGEST}", said) == (f"{IMAGE}@{DIGEST}", "5.1", DIGEST)
    assert resolved(f"{IMAGE}:{said}@{DIGEST}", said) == (f"{IMAGE}:5.1@{DIGEST}", "5.1", DIGEST)
    assert resolved("shop", said) == ("shop:5.1", "5.1", None)


def test_an_image_with_nothing_but_a_digest_is_called_by_it() -> None:
    assert resolved(f"{IMAGE}@{DIGEST}")[1:] == ("0" * 64, DIGEST)


def test_an_image_may_come_from_a_task(dag: DAG) -> None:
    @task
    def build() -> str:
        return f"{IMAGE}:5.1"

    built = build()
    deploys = [deploy("a", image=built), deploy("b", image=str(built))]
    built >> deploys[1]
    finish(deploys)
    parsed(dag)
    assert [each.upstream_task_ids for each in deploys] == [{"build"}, {"build"}]


WRONG = [
    (f"{IMAGE}:5.0", "5.1", "image: has the tag '5.0', and version is '5.1'; leave one of them out"),
    (f"{IMAGE}:5.0@{DIGEST}", "5.1", "image: has the tag '5.0', and version is '5.1'"),
    (IMAGE, "", f"image: '{IMAGE}' has no tag, and there is no version; add version, or write {IMAGE}:5.1"),
    (f"{IMAGE}:", "5.1", "image: the tag: '' is no image tag; give letters"),
    (f"{IMAGE}@sha256:12", "5.1", "is none; write it as registry.example.com/shop:5.1"),
    ("https//shop?x", "5.1", "is none; write it as"),
    (IMAGE, "5.1 beta", "version: '5.1 beta' is no image tag; give letters"),
]


@pytest.mark.parametrize(("image", "version", "why"), WRONG)
def test_an_image_that_is_not_that_of_the_version_is_refused(image: str, version: str, why: str, dag: DAG) -> None:
    said = refused(lambda: deploy("aws", image=image, version=version))
    assert said.startswith("aws: ")
    assert why in said


@pytest.mark.parametrize(("image", "version", "why"), WRONG)
def test_one_that_is_known_only_when_the_task_runs_is_refused_before_a_write(
    image: str, version: str, why: str, dag: DAG
) -> None:
    task = deploy("aws", image="{{ params.image }}", version="{{ params.version }}")
    context = Running(task)
    task.image, task.version = image, version
    with pytest.raises(Final) as caught:
        task._resolve(context)
    assert why in str(caught.value)
    assert why in context.pushed["rollout"]["reason"]


def test_a_version_that_a_template_made_a_number_of_is_refused(dag: DAG) -> None:
    task = deploy("aws", version="{{ params.version }}")
    task.version = 1.1  # type: ignore[assignment] - what a native template makes of 1.10
    with pytest.raises(
        Final, match=r"aws: version: is a float, not a text; quote it, or give the task render_template"
    ):
        task._resolve(Running(task) | {"run_id": "r1"})


def test_a_deploy_without_an_image_is_refused_with_its_dag(dag: DAG) -> None:
    deploy("aws", image="")
    assert refused(lambda: parsed(dag)).startswith("aws: image: missing; give the full image reference, such as")


def test_a_build_of_a_tagged_image_is_refused_when_it_is_parsed(dag: DAG) -> None:
    assert "holds a tag" in refused(lambda: BuildImageOperator(task_id="b", image=f"{IMAGE}:5.1", version="5.1"))


# --- time-outs and other people's defaults ----------------------------------------------------------------------------


def test_a_dagrun_timeout_is_refused_also_when_it_is_set_last(dag: DAG) -> None:
    finish([deploy("a")])
    parsed(dag)
    dag.dagrun_timeout = timedelta(hours=1)
    assert refused(lambda: parsed(dag)).startswith(
        "shop: dagrun_timeout: a run that it ends skips its rollbacks; leave it out: a deploy's timeout and"
    )


def test_an_execution_timeout_is_refused(dag: DAG) -> None:
    hour = timedelta(hours=1)
    assert refused(lambda: deploy("a", execution_timeout=hour)).startswith("a: execution_timeout: would end it in the")
    first = deploy("b")
    assert refused(lambda: finish([first], execution_timeout=hour)).startswith("finish: execution_timeout: is set by")


def test_the_defaults_of_a_dag_do_not_keep_anything_from_going_back() -> None:
    defaults = {
        "execution_timeout": timedelta(minutes=1),
        "depends_on_past": True,
        "wait_for_downstream": True,
        "trigger_rule": "all_success",
    }
    with DAG("shop", schedule=None, default_args=defaults) as dag:
        finish([deploy("a")])
    parsed(dag)
    for task_id in ("deploys_ended", "aggregate_status", "rollback.a", "finalize"):
        task = dag.get_task(task_id)
        assert (task.depends_on_past, task.wait_for_downstream, task.trigger_rule) == (False, False, "all_done"), (
            task_id
        )
    assert {dag.get_task(name).execution_timeout for name in ("a", "aggregate_status", "rollback.a")} == {None}


def test_a_deploy_that_is_taken_for_dead_has_another_try_unless_somebody_says_otherwise(dag: DAG) -> None:
    tries = [deploy("a"), deploy("b", retries=0)]
    with DAG("other", schedule=None, default_args={"retries": 7, "retry_delay": timedelta(seconds=9)}):
        tries.append(deploy("c"))
    assert [(task.retries, task.retry_delay.total_seconds()) for task in tries] == [(2, 5), (0, 5), (7, 9)]


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"policy": "most"}, "policy: there is no 'most'; give one of 'all', 'critical' or {'at_least': 2}"),
        ({"policy": "critcal"}, "policy: there is no 'critcal'; did you mean 'critical'? There are 'all', 'critical'"),
        ({"policy": {"at_least": 3}}, "policy.at_least: 3 is more than the 1 deploys; lower it"),
        ({"policy": {"at_lest": 1}}, "policy.at_lest: unknown key; did you mean 'at_least'?"),
        ({"policy": {"at_least": "1"}}, "policy.at_least: Input should be a valid integer; write a number without"),
        ({"strategy": "fialed"}, "strategy: there is no 'fialed'; did you mean 'failed'? There are 'all', 'failed'"),
        ({"strateggy": "all"}, "strateggy: unknown argument; did you mean 'strategy'?"),
        ({"manual": {"users": ["x"]}}, "manual.users: nobody is asked with this strategy; set strategy='manual'"),
        ({"strategy": "manual", "manual": {"timeot": 5}}, "manual.timeot: unknown key; did you mean 'timeout'?"),
        ({"pools": {"b": "p"}}, "pools: none of the deploys has the target 'b'; name one that has"),
        ({"trigger_rule": "all_success"}, "trigger_rule: is set by finish, so that its tasks run whatever becomes of"),
        ({"service_name": "x"}, "service_name: is what the deploys say; give it to each of them"),
    ],
)
def test_a_tail_that_is_none_is_refused(dag: DAG, arguments: dict[str, Any], why: str) -> None:
    first = deploy("a")
    assert f"finish: {why}" in refused(lambda: finish([first], **arguments))
    assert dag.task_ids == ["a"]


def test_a_policy_of_critical_targets_without_any_is_refused(dag: DAG) -> None:
    first = deploy("a", critical=False)
    assert refused(lambda: finish([first], policy="critical")).startswith("finish: policy: critical, but every deploy")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"clutser": "main", "cluster": None}, "aws: clutser: unknown argument; did you mean 'cluster'?"),
        ({"verison": "5.1", "version": None}, "aws: verison: unknown argument; did you mean 'version'?"),
        ({"retry": 3}, "aws: retry: unknown argument; did you mean 'retries'?"),
        ({"tokne": "s3cret-s3cret"}, "aws: tokne: unknown argument; "),
    ],
)
def test_a_misspelt_argument_of_a_deploy_is_named(dag: DAG, arguments: dict[str, Any], why: str) -> None:
    given = {"conn_id": "aws", "cluster": "main", "service": "shop", "image": IMAGE, "version": "5.1", **arguments}
    given = {key: value for key, value in given.items() if value is not None}
    said = refused(lambda: AwsEcsDeployOperator(task_id="aws", **given))
    assert said.startswith(why)
    assert "s3cret" not in said


def test_a_notifier_that_is_none_is_refused(dag: DAG) -> None:
    first = deploy("a")
    said = refused(lambda: finish([first], notify=[{"notifer": "x.Y"}]))
    assert "notify[0].notifer: unknown key; did you mean 'notifier'?" in said


# --- as the DAG processor reads it ------------------------------------------------------------------------------------


def test_the_dag_processor_shows_the_sentence(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        textwrap.dedent("""
        from datetime import timedelta
        from airflow.sdk import DAG
        from airflow_multideploy import finish
        from airflow_multideploy.operators.onprem import HttpDeployOperator

        with DAG("late", schedule=None) as dag:
            finish([HttpDeployOperator(task_id="dc1", conn_id="dc1", image="shop", version="1")])
        dag.dagrun_timeout = timedelta(hours=1)
        """)
    )
    bag = DagBag(dag_folder=str(tmp_path))
    assert list(bag.dags) == []
    assert next(iter(bag.import_errors.values())).startswith("SpecError: late: dagrun_timeout: a run that it ends")


def test_the_dag_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "hand-written.md").read_text()
    block = re.search(r"```python\n(.*?)```", page, flags=re.S)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)
    parsed(names["dag"])
    assert names["dag"].get_task("rollback.us.aws").downstream_task_ids >= {"rollback.eu.aws"}


def test_keys_of_targets_that_begin_alike_never_meet() -> None:
    from airflow_multideploy.release.journal import Journal

    store = MemoryStore()
    names = ("eu", "eu.aws", "eu.journal", "ledger", "eu.live")
    for name in names:
        Journal(store, f"shop/{name}", prefix=f"{name}.").close("d", name, 1)
        Journal(store, f"shop/{name}", prefix=f"{name}.").remember_bad(f"image-{name}", "x")
    for name in names:
        book = Journal(store, f"shop/{name}", prefix=f"{name}.")
        assert [other for other in names if book.closed("d", other, 1)] == [name]
        assert list(book.bad()) == [f"image-{name}"]
