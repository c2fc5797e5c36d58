"""Workflow templates of Argo Workflows, over the Argo server's REST API: config, adapter and operator."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.platforms.artifact import Located
from airflow_multideploy.platforms.pipelines.pipeline import Delegate
from airflow_multideploy.platforms.pipelines.run import DelegateConfig, Run, moment
from airflow_multideploy.platforms.rest import Call, Json, Steps, at
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Release

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
_STATES: dict[str, Literal["active", "succeeded", "failed"]] = {
    "Succeeded": "succeeded",
    "Failed": "failed",
    "Error": "failed",
}
_LABEL = "workflows.argoproj.io"
_SEEN = (
    "metadata.name,metadata.uid,metadata.creationTimestamp,metadata.labels,spec.arguments,spec.shutdown,"
    "status.phase,status.startedAt,status.message,status.progress"
)
_LONGEST = 30
"""Characters of a target's name that a workflow's name, at most 63 in all, has room for."""


class ArgoWorkflowsConfig(DelegateConfig):
    """A workflow template of Argo Workflows (3.5 or later).

    :param namespace: where the template is, and its workflows run.
    :param template: the WorkflowTemplate that deploys. Its workflow succeeds only when what it was given serves.
    :param parameters: what a workflow is given: texts with `${image}`, `${version}`, `${digest}`, `${release_id}`,
        `${service}` and `${reason}` in them.
    :param rollback_template: the template that goes back; it is given the parameters of the last successful workflow
        before the release. None: the one that deploys.
    :param remove_template: the template that takes down a first-ever release, with that release's parameters; None:
        there is none, and going back from a first-ever release is an error unless `first_deploy` is `leave`. What the
        deploy template never released counts as never deployed: leave it out where something runs that others put
        there.
    :param cluster_scope: they are ClusterWorkflowTemplates.
    :param stop: how a workflow under way is ended before the way back begins: `terminate` at once, or `stop` with its
        exit handlers.
    """

    platform: Literal["argo_workflows"] = "argo_workflows"
    namespace: Name
    template: Name
    parameters: dict[str, Located] = {"image": "${image}"}
    rollback_template: Name | None = None
    remove_template: Name | None = None
    cluster_scope: bool = False
    stop: Literal["terminate", "stop"] = "terminate"

    @property
    def given(self) -> Json:
        return dict(self.parameters)

    @property
    def pipelines(self) -> tuple[str, str, str | None]:
        return self.template, self.rollback_template or self.template, self.remove_template


class ArgoWorkflows(Delegate[ArgoWorkflowsConfig]):
    """Hands a release to a workflow template of Argo Workflows, and follows its workflow.

    What is live is what the youngest successful workflow of the template was given. A workflow that somebody else
    submits, or retries, is a change of theirs.
    """

    kind: ClassVar[str] = "argo_workflows"
    config_type: ClassVar[type[TargetConfig]] = ArgoWorkflowsConfig
    api: ClassVar[str] = "Argo Workflows"
    stop_words: ClassVar[str] = "terminate it there"
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="name and parameters of the last successful workflow of the template",
        early_failure="the workflow's phase `Failed` or `Error`, with the failed steps' own messages",
        restores="what the template deploys when it is given the snapshot's parameters again",
        tested_against="stand-in held to the used part of Argo's OpenAPI document, written down in our own words",
    )
    manual: ClassVar[Manual | None] = Manual(
        connection="Type `http`: `host` is the Argo server's address (`https://argo.example.com`), the password is the "
        "bearer token of a service account. Extra: `verify` (false, or the path of a CA bundle), `headers` (sent with "
        "every call).",
        protocol="""\
1. The templates have to be there. Snapshot: the workflows of the template, by the label that Argo itself puts on them;
   the youngest that succeeded, by start; waits while one is under way. When none is kept any more, it is the release
   that the journal last saw live. Where neither tells anything, nothing counts as deployed, and a rollback removes, if
   a template for that is configured.
2. Deploy: `POST workflows/{namespace}/submit` with the name `{release id}-{target}` and `parameters`. A conflict (409)
   is our own earlier write. Refused when another workflow came in between.
3. Healthy: our workflow is `Succeeded`, and no younger one is under way or succeeded. Failed: `Failed` or `Error`.
4. Rollback: our workflow, if it is still under way, is terminated, and its end is waited for; then a workflow of
   `rollback_template` with the snapshot's parameters and the name `{release id}-back-{target}`. When that one fails,
   the next attempt is `-back2`.

Argo has no concurrency token: a workflow that somebody submits in the moment between our look and our write is seen
afterwards only. Keep workflows for longer than a release takes (`ttlStrategy`), or archive them. Several targets or
services on one template: tell them apart by `scope`.""",
        permissions="""\
A service account's role in the namespace:

```yaml
rules:
  - {apiGroups: [argoproj.io], resources: [workflows], verbs: [get, list, create, patch]}
  - {apiGroups: [argoproj.io], resources: [workflowtemplates], verbs: [get]}
```""",
        not_undone="What the template does not undo when it is given the old parameters. The failed workflow stays.",
        example="""\
shop:
  platform: argo_workflows
  conn_id: argo
  namespace: ci
  template: deploy-shop
  parameters: {image: "${image}", release: "${release_id}"}""",
    )

    def console_url(self, handle: Handle | None = None) -> str | None:
        """The workflow, else the template, in Argo's own page."""
        if self.config.console is None:
            return None
        base, namespace = self.config.console.rstrip("/"), self.config.namespace
        if handle is not None and handle.data.get("key"):
            return base + at("workflows", namespace, str(handle.data["key"]))
        if self.config.cluster_scope:
            return base + at("cluster-workflow-templates", self.config.template)
        return base + at("workflow-templates", namespace, self.config.template)

    def _key(self, name: str) -> str:
        """A workflow's name, which has to be a DNS label."""
        target = re.sub(r"[^a-z0-9-]", "-", self.target.lower()).strip("-")  # by hand, it is called as tasks are
        if target != self.target or len(target) > _LONGEST:
            target = f"{target[: _LONGEST - 7]}-{hashlib.sha256(self.target.encode()).hexdigest()[:6]}"
        return f"{name}-{target}"

    # --- calls: https://argo-workflows.readthedocs.io/en/latest/swagger/ ---------------------------------------------

    def _find(self, pipeline: str, key: str) -> Steps[Run | None]:
        reply = yield Call("GET", self._path(key), {"fields": _SEEN}, also=(404,))
        return None if reply.status == 404 else _run(reply.document, pipeline)

    def _recent(self, pipeline: str) -> Steps[list[Run]]:
        kind = "cluster-workflow-template" if self.config.cluster_scope else "workflow-template"
        params = {
            "listOptions.labelSelector": f"{_LABEL}/{kind}={pipeline}",
            "fields": "metadata," + ",".join(f"items.{name}" for name in _SEEN.split(",")),
        }
        reply = yield Call("GET", at("api", "v1", "workflows", self.config.namespace), params)
        runs = [_run(document, pipeline) for document in reply.document["items"] or []]
        return [run for run in runs if run.state != "failed"]

    def _check(self, pipeline: str) -> Steps[None]:
        if self.config.cluster_scope:
            yield Call("GET", at("api", "v1", "cluster-workflow-templates", pipeline))
        else:
            yield Call("GET", at("api", "v1", "workflow-templates", self.config.namespace, pipeline))

    def _submit(self, pipeline: str, key: str, parameters: Json, release: Release) -> Steps[Run]:
        body = {
            "namespace": self.config.namespace,
            "resourceKind": "ClusterWorkflowTemplate" if self.config.cluster_scope else "WorkflowTemplate",
            "resourceName": pipeline,
            "submitOptions": {
                "name": key,
                "labels": f"multideploy/release={release.release_id}",
                "parameters": [f"{name}={value}" for name, value in parameters.items()],
            },
        }
        path = at("api", "v1", "workflows", self.config.namespace, "submit")
        reply = yield Call("POST", path, body=body, also=(409,))
        if reply.status == 409:
            reply = yield Call("GET", self._path(key), {"fields": _SEEN})
        return _run(reply.document, pipeline)

    def _stop(self, run: Run) -> Steps[None]:
        body = {"namespace": self.config.namespace, "name": run.key}
        yield Call("PUT", self._path(run.key) + at(self.config.stop), body=body)

    def _why(self, run: Run) -> Steps[str]:
        reply = yield Call("GET", self._path(run.key), {"fields": "status.message,status.nodes"})
        status = reply.document.get("status") or {}
        said: dict[str, None] = {}
        for node in (status.get("nodes") or {}).values():
            if node.get("phase") in ("Failed", "Error") and node.get("type") in ("Pod", "Container", "HTTP", "Plugin"):
                said[f"{node.get('displayName') or node['name']}: {node.get('message') or node['phase']}"] = None
        return "; ".join(said) or str(status.get("message") or "")

    def _path(self, name: str) -> str:
        return at("api", "v1", "workflows", self.config.namespace, name)


def _run(document: Json, pipeline: str) -> Run:
    about, spec, status = document["metadata"], document["spec"], document.get("status") or {}
    given = (spec.get("arguments") or {}).get("parameters") or []
    phase = status.get("phase") or "Pending"
    done, _, total = str(status.get("progress") or "").partition("/")
    return Run(
        id=about["uid"],
        key=about["name"],
        pipeline=pipeline,
        state=_STATES.get(phase, "active"),
        since=moment(status.get("startedAt") or about["creationTimestamp"]),
        parameters={item["name"]: item.get("value") for item in given},
        words=f"{phase}: {status['message']}" if status.get("message") else phase,
        progress=int(done) / int(total) if total.isdecimal() and int(total) else None,
        stopping=bool(spec.get("shutdown")),
    )
