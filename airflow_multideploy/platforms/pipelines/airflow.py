"""Another Airflow's DAG, over its REST API: config, adapter and operator."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Annotated, Any, ClassVar, Literal

import httpx
from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import PlatformError
from airflow_multideploy.platforms.pipelines.pipeline import Delegate
from airflow_multideploy.platforms.pipelines.run import DelegateConfig, Parameters, Run, moment
from airflow_multideploy.platforms.rest import Call, Door, Json, NoEntry, Steps, at
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Release

DagId = Annotated[str, Field(min_length=1, max_length=250)]
_API = "https://airflow.apache.org/docs/apache-airflow/stable/stable-rest-api-ref.html"
_STATES: dict[str, Literal["active", "succeeded", "failed"]] = {"success": "succeeded", "failed": "failed"}
_MOST_RUNS = "50"
_tokens: dict[str, str] = {}
"""Of this process, by a hash of address, login and password: a login is made once, not for each look."""


class AirflowConfig(DelegateConfig):
    """A DAG of another Airflow (3.0 or later).

    :param dag_id: the DAG that deploys. It takes what to deploy from its run's conf, ends as success only when that
        serves, and is not paused.
    :param conf: what a run is given: JSON with `${image}`, `${version}`, `${digest}`, `${release_id}`, `${service}` and
        `${reason}` in its strings.
    :param rollback_dag_id: the DAG that goes back; it is given the conf of the last successful run before the release.
        None: the one that deploys.
    :param remove_dag_id: the DAG that takes down a first-ever release, with that release's conf; None: there is none,
        and going back from a first-ever release is an error unless `first_deploy` is `leave`. What the deploy DAG never
        released counts as never deployed: leave it out where something runs that others put there.
    """

    platform: Literal["airflow"] = "airflow"
    dag_id: DagId
    conf: Parameters = {"image": "${image}"}
    rollback_dag_id: DagId | None = None
    remove_dag_id: DagId | None = None

    @property
    def given(self) -> Json:
        return self.conf

    @property
    def pipelines(self) -> tuple[str, str, str | None]:
        return self.dag_id, self.rollback_dag_id or self.dag_id, self.remove_dag_id


class _Login(httpx.Auth):
    """Changes login and password for a token at ``/auth/token``, again when the token is no longer accepted."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.key = hashlib.sha256("\0".join((door.base, door.login, door.password)).encode()).hexdigest()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if token := _tokens.get(self.key):
            request.headers["Authorization"] = f"Bearer {token}"
            answer = yield request
            if answer.status_code != 401:
                return
        self.requires_response_body = True
        body = {"username": self.door.login, "password": self.door.password}
        entry = yield httpx.Request("POST", f"{self.door.base}/auth/token", json=body, headers=self.door.headers)
        self.requires_response_body = False
        if entry.status_code not in (200, 201):
            raise NoEntry(entry)
        _tokens[self.key] = str(entry.json()["access_token"])
        request.headers["Authorization"] = f"Bearer {_tokens[self.key]}"
        yield request


class Airflow(Delegate[AirflowConfig]):
    """Hands a release to another Airflow's DAG, and follows its run.

    What is live is what the conf of the DAG's youngest successful run says. A run that somebody else starts, or starts
    again by clearing it, is a change of theirs.
    """

    kind: ClassVar[str] = "airflow"
    config_type: ClassVar[type[TargetConfig]] = AirflowConfig
    api: ClassVar[str] = "Airflow"
    stop_words: ClassVar[str] = "mark it as failed there"
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="run id and conf of the last successful run of the DAG",
        early_failure="the run's state `failed`, with the failed tasks and the error that the first of them logged",
        restores="what the DAG deploys when it is given the snapshot's conf again",
        tested_against="stand-in held to Airflow's own OpenAPI document, and a real Airflow",
    )
    manual: ClassVar[Manual | None] = Manual(
        connection="Type `http`: `host` is the other Airflow's address (`https://airflow.example.com`), without "
        "`/api/v2`. With a login and a password, a token is fetched from `/auth/token`; a password alone is the token. "
        "Extra: `verify` (false, or the path of a CA bundle), `headers` (sent with every call).",
        protocol="""\
1. The DAGs have to be there, and not paused. Snapshot: `GET dags/{dag_id}/dagRuns`, the youngest `success`, by start;
   waits while a run is under way. When no run is kept any more, it is the release that the journal last saw live.
   Where neither tells anything, nothing counts as deployed, and a rollback removes, if a DAG for that is configured.
2. Deploy: `POST dags/{dag_id}/dagRuns` with the run id `{release id}.{target}` and `conf`. A conflict (409) is our own
   earlier write. Refused when the DAG is paused, and when another run came in between.
3. Healthy: our run is `success`, and no younger one is under way or was a success. Failed: our run is `failed`.
4. Rollback: our run, if it is still under way, is marked `failed`, and its end is waited for; then a run of
   `rollback_dag_id` with the snapshot's conf and the run id `{release id}-back.{target}`. When that one fails, the next
   attempt is `-back2`.

Airflow has no concurrency token: a run that somebody starts in the moment between our look and our write is seen
afterwards only. Several targets or services on one DAG: tell them apart by `scope`.""",
        permissions="""\
- DAG runs: read, create and edit, on the DAGs that are named
- DAGs: read, on the same; task instances: read; task logs: read (without it, a failure is told without its error)""",
        not_undone="What the DAG does not undo when it is given the old conf. The failed run stays in its history.",
        example="""\
legacy:
  platform: airflow
  conn_id: other_airflow
  dag_id: deploy_shop
  conf: {image: "${image}", release: "${release_id}"}""",
    )

    def authentication(self, door: Door) -> httpx.Auth | None:
        """With a login: a token for it."""
        return _Login(door) if door.login else super().authentication(door)

    def console_url(self, handle: Handle | None = None) -> str | None:
        """The run, else the DAG, in the other Airflow's own page."""
        if self.config.console is None:
            return None
        base = self.config.console.rstrip("/")
        if handle is None or not handle.data.get("key"):
            return base + at("dags", self.config.dag_id)
        return base + at("dags", str(handle.data["pipeline"]), "runs", str(handle.data["key"]))

    # --- calls: see _API ---------------------------------------------------------------------------------------------

    def _find(self, pipeline: str, key: str) -> Steps[Run | None]:
        reply = yield Call("GET", _run_path(pipeline, key), also=(404,))
        return None if reply.status == 404 else _run(reply.document)

    def _recent(self, pipeline: str) -> Steps[list[Run]]:
        found: list[Run] = []
        for states in (["success"], ["queued", "running"]):
            params: dict[str, str | list[str]] = {"state": states, "order_by": "-start_date", "limit": _MOST_RUNS}
            reply = yield Call("GET", at("api", "v2", "dags", pipeline, "dagRuns"), params)
            found += [_run(document) for document in reply.document["dag_runs"]]
        return found

    def _check(self, pipeline: str) -> Steps[None]:
        dag = yield Call("GET", at("api", "v2", "dags", pipeline))
        if dag.document["is_paused"]:
            raise self.error(f"Airflow: DAG {pipeline!r} is paused, so a run would wait for ever; unpause it there")

    def _submit(self, pipeline: str, key: str, parameters: Json, release: Release) -> Steps[Run]:
        yield from self._check(pipeline)
        note = f"Release {release.version} of {self.name}"
        body = {"dag_run_id": key, "logical_date": None, "conf": parameters, "note": note}
        reply = yield Call("POST", at("api", "v2", "dags", pipeline, "dagRuns"), body=body, also=(409,))
        if reply.status == 409:
            reply = yield Call("GET", _run_path(pipeline, key))
        return _run(reply.document)

    def _stop(self, run: Run) -> Steps[None]:
        yield Call("PATCH", _run_path(run.pipeline, run.key), {"update_mask": "state"}, {"state": "failed"})

    def _why(self, run: Run) -> Steps[str]:
        params: dict[str, str | list[str]] = {"state": "failed", "order_by": "end_date", "limit": _MOST_RUNS}
        reply = yield Call("GET", _run_path(run.pipeline, run.key) + "/taskInstances", params)
        failed: list[Json] = reply.document["task_instances"]
        if not failed:
            return ""
        said = "task " + ", ".join(dict.fromkeys(task["task_id"] for task in failed))
        path = _run_path(run.pipeline, run.key) + at(
            "taskInstances", failed[0]["task_id"], "logs", str(failed[0]["try_number"])
        )
        try:
            log = yield Call("GET", path, {"map_index": str(failed[0]["map_index"])}, also=(403, 404))
        except PlatformError:
            return said  # the log's words are a help, not what is asked
        words = _error(log.document["content"]) if log.status == 200 else ""
        return f"{said}: {words}" if words else said


def _run_path(dag_id: str, run_id: str) -> str:
    return at("api", "v2", "dags", dag_id, "dagRuns", run_id)


def _run(document: Json) -> Run:
    # The start is set anew when somebody clears the run: then it is their change.
    since = document["start_date"] or document["queued_at"]
    return Run(
        id=document["dag_run_id"],
        key=document["dag_run_id"],
        pipeline=document["dag_id"],
        state=_STATES.get(document["state"], "active"),
        since=moment(since),
        parameters=document["conf"] or {},
        words=document["state"],
    )


def _error(lines: list[Any]) -> str:
    """The last error of a structured task log."""
    for line in reversed([line for line in lines if isinstance(line, dict)]):
        if detail := line.get("error_detail"):
            return f"{detail[0]['exc_type']}: {detail[0]['exc_value']}"
        if line.get("level") in ("error", "critical"):
            return str(line["event"])
    return ""
