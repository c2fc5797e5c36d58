"""Deployments of Prefect 3, over its REST API: config, adapter and operator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.platforms.pipelines.pipeline import Delegate
from airflow_multideploy.platforms.pipelines.run import DelegateConfig, Parameters, Run, moment
from airflow_multideploy.platforms.rest import Call, Json, Steps, at
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Release

Name = Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]
_STATES: dict[str, Literal["active", "succeeded", "failed"]] = {
    "COMPLETED": "succeeded",
    "FAILED": "failed",
    "CRASHED": "failed",
    "CANCELLED": "failed",
}
_UNDER_WAY = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
_SOON = timedelta(minutes=1)
"""A run that is scheduled within this time counts as under way."""
_MOST_RUNS = 50


class PrefectConfig(DelegateConfig):
    """A deployment of Prefect 3.

    :param deployment: `flow/deployment` that deploys. Its run ends as `Completed` only when what it was given serves.
    :param parameters: what a run is given: JSON with `${image}`, `${version}`, `${digest}`, `${release_id}`,
        `${service}` and `${reason}` in its strings. The deployment's own parameters stand beside them.
    :param rollback_deployment: the one that goes back; it is given the parameters of the last completed run before the
        release. None: the one that deploys.
    :param remove_deployment: the one that takes down a first-ever release, with that release's parameters; None: there
        is none, and going back from a first-ever release is an error unless `first_deploy` is `leave`. What the deploy
        deployment never released counts as never deployed: leave it out where something runs that others put there.
    """

    platform: Literal["prefect"] = "prefect"
    deployment: Name
    parameters: Parameters = {"image": "${image}"}
    rollback_deployment: Name | None = None
    remove_deployment: Name | None = None

    @property
    def given(self) -> Json:
        return self.parameters

    @property
    def pipelines(self) -> tuple[str, str, str | None]:
        return self.deployment, self.rollback_deployment or self.deployment, self.remove_deployment


class Prefect(Delegate[PrefectConfig]):
    """Hands a release to a deployment of Prefect, and follows its flow run.

    What is live is what the deployment's youngest completed run was given. A run that somebody else starts is a change
    of theirs; a run that Prefect has scheduled for later is none yet.
    """

    kind: ClassVar[str] = "prefect"
    config_type: ClassVar[type[TargetConfig]] = PrefectConfig
    api: ClassVar[str] = "Prefect"
    stop_words: ClassVar[str] = "cancel it there"
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="id and parameters of the last completed run of the deployment",
        early_failure="the run's state `Failed`, `Crashed` or `Cancelled`, with its message and the failed tasks",
        restores="what the deployment deploys when it is given the snapshot's parameters again",
        tested_against="stand-in held to the used part of Prefect's OpenAPI document, and a real Prefect 3 server",
    )
    manual: ClassVar[Manual | None] = Manual(
        connection="Type `http`: `host` is the API's address with its path (`https://prefect.example.com/api`, or "
        "`https://api.prefect.cloud/api/accounts/…/workspaces/…`). Prefect Cloud: the password is the API key. A "
        "server of one's own with an authentication string `login:password`: those. Extra: `verify` (false, or the "
        "path of a CA bundle), `headers` (sent with every call).",
        protocol="""\
1. The deployments have to be there. Snapshot: `POST flow_runs/filter`, the deployment's youngest `COMPLETED` run, by
   start; waits while one is under way. When none is kept any more, it is the release that the journal last saw live.
   Where neither tells anything, nothing counts as deployed, and a rollback removes, if a deployment for that is
   configured.
2. Deploy: `POST deployments/{id}/create_flow_run` with the idempotency key `{release id}.{target}` and `parameters`:
   Prefect itself answers a repeat with the first run. Refused when another run came in between.
3. Healthy: our run is `COMPLETED`, and no younger one is under way or completed. Failed: `FAILED`, `CRASHED`,
   `CANCELLED`.
4. Rollback: our run, if it is still under way, is set to `CANCELLING`, and its end is waited for; then a run of
   `rollback_deployment` with the snapshot's parameters and the key `{release id}-back.{target}`. When that one fails,
   the next attempt is `-back2`.

Prefect has no concurrency token: a run that somebody starts in the moment between our look and our write is seen
afterwards only. Several targets or services on one deployment: tell them apart by `scope`.""",
        permissions="""\
Prefect Cloud: a service account with a role that may

- see flows, deployments and flow runs (`see_flows`, `see_deployments`)
- run deployments (`run_deployments`) and set the states of flow runs (`run_flows`)

A server of one's own knows no rights besides its authentication string.""",
        not_undone="What the flow does not undo when it is given the old parameters. The failed run stays.",
        example="""\
shop:
  platform: prefect
  conn_id: prefect
  deployment: release-shop/production
  parameters: {image: "${image}", release: "${release_id}"}""",
    )

    def console_url(self, handle: Handle | None = None) -> str | None:
        """The run, else the deployments, in Prefect's own page."""
        if self.config.console is None:
            return None
        base = self.config.console.rstrip("/")
        if handle is not None and handle.revision:
            return base + at("runs", "flow-run", handle.revision)
        return base + "/deployments"

    # --- calls: https://docs.prefect.io/v3/api-ref/rest-api ----------------------------------------------------------

    def _find(self, pipeline: str, key: str) -> Steps[Run | None]:
        if _is_id(key):
            reply = yield Call("GET", at("flow_runs", key), also=(404,))
            return None if reply.status == 404 else _run(reply.document, pipeline)
        runs = yield from self._filter(pipeline, {"idempotency_key": {"any_": [key]}})
        return runs[0] if runs else None

    def _recent(self, pipeline: str) -> Steps[list[Run]]:
        soon = (datetime.now(UTC) + _SOON).isoformat()
        done = yield from self._filter(pipeline, {"state": {"type": {"any_": ["COMPLETED"]}}})
        under_way = {"state": {"type": {"any_": _UNDER_WAY}}, "expected_start_time": {"before_": soon}}
        return done + (yield from self._filter(pipeline, under_way))

    def _filter(self, pipeline: str, runs: Json) -> Steps[list[Run]]:
        flow, _, deployment = pipeline.partition("/")
        body = {
            "flows": {"name": {"any_": [flow]}},
            "deployments": {"name": {"any_": [deployment]}},
            "flow_runs": runs,
            "sort": "START_TIME_DESC",
            "limit": _MOST_RUNS,
        }
        reply = yield Call("POST", "/flow_runs/filter", body=body)
        return [_run(document, pipeline) for document in reply.document]

    def _check(self, pipeline: str) -> Steps[None]:
        yield from self._id(pipeline)

    def _id(self, pipeline: str) -> Steps[str]:
        flow, _, name = pipeline.partition("/")
        reply = yield Call("GET", at("deployments", "name", flow, name))
        return str(reply.document["id"])

    def _submit(self, pipeline: str, key: str, parameters: Json, release: Release) -> Steps[Run]:
        deployment = yield from self._id(pipeline)
        body = {"parameters": parameters, "idempotency_key": key, "name": f"{release.version} {key}"}
        reply = yield Call("POST", at("deployments", deployment, "create_flow_run"), body=body)
        return _run(reply.document, pipeline)

    def _stop(self, run: Run) -> Steps[None]:
        state = {"type": "CANCELLING", "name": "Cancelling", "message": f"{self.name}: its release is rolled back"}
        yield Call("POST", at("flow_runs", run.id, "set_state"), body={"state": state, "force": False})

    def _why(self, run: Run) -> Steps[str]:
        body = {
            "flow_runs": {"id": {"any_": [run.id]}},
            "task_runs": {"state": {"type": {"any_": ["FAILED", "CRASHED"]}}},
            "limit": _MOST_RUNS,
        }
        reply = yield Call("POST", "/task_runs/filter", body=body)
        tasks = ", ".join(dict.fromkeys(str(task["name"]) for task in reply.document))
        return f"{run.words}; task {tasks}" if tasks else run.words


def _is_id(key: str) -> bool:
    try:
        return str(UUID(key)) == key.lower()
    except ValueError:
        return False


def _run(document: Json, pipeline: str) -> Run:
    given, state = document["idempotency_key"], document["state"] or {"type": "PENDING", "name": "Pending"}
    return Run(
        id=document["id"],
        key=given if given and not _is_id(given) else document["id"],
        pipeline=pipeline,
        state=_STATES.get(state["type"], "active"),
        since=moment(document["start_time"] or document["expected_start_time"]),
        parameters=document["parameters"],
        words=f"{state['name']}: {state['message']}" if state.get("message") else str(state["name"]),
        stopping=state["type"] == "CANCELLING",
    )
