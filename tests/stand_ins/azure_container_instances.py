"""Stand-in for Azure Container Instances, on the Resource Manager and the login of the sandbox's Azure stand-in.

Held to azure-mgmt-containerinstance by ``tests/platforms/azure/test_container_instances.py``. What it does on its own
initiative, because no contract says it:

- A PUT of a group restarts its container at once: nothing serves until its course is over.
- A container that does not start restarts again and again, and an event tells why.
- Secrets are hidden in answers, and a PUT without one loses it: the container then does not start.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from typing import Any

from airflow_multideploy.sandbox._azure_site import iso
from airflow_multideploy.sandbox.azure_web_app import GROUP, SUBSCRIPTION, AzureWebAppStandIn, Refused
from airflow_multideploy.sandbox.world import Course, Live, World

HELLO = "mcr.microsoft.com/azuredocs/aci-helloworld:latest"
SECRETS = {
    "DATABASE_PASSWORD": "others-canary-51c0",
    "registry.example.com": "others-canary-77d2",
    "shopfiles": "others-canary-93e1",
}
_GROUP = re.compile(
    r"^/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/Microsoft\.ContainerInstance/"
    r"containerGroups/(?P<name>[^/]+)$",
    re.I,
)

Json = dict[str, Any]


@dataclass
class Group:
    """One container group, with its secrets."""

    document: Json
    course: Course | None = None
    at: float = field(default_factory=World.now)
    made: list[str] = field(default_factory=list)

    @property
    def container(self) -> Json:
        return self.document["properties"]["containers"][0]["properties"]

    @property
    def elapsed(self) -> float:
        return World.now() - self.at

    @property
    def runs(self) -> bool:
        return self.course is None or (self.course.done(self.elapsed) and not self.failed)

    @property
    def failed(self) -> bool:
        return self.course is not None and self.course.failed(self.elapsed)


def group(image: str) -> Json:
    """As the command line makes one."""
    variables = [
        {"name": "COLOUR", "value": "green"},
        {"name": "DATABASE_PASSWORD", "secureValue": SECRETS["DATABASE_PASSWORD"]},
    ]
    container = {
        "image": image,
        "ports": [{"port": 80, "protocol": "TCP"}],
        "environmentVariables": variables,
        "resources": {"requests": {"memoryInGB": 1.5, "cpu": 1.0}},
    }
    login = {"server": "registry.example.com", "username": "puller", "password": SECRETS["registry.example.com"]}
    share = {"shareName": "files", "storageAccountName": "shopfiles", "storageAccountKey": SECRETS["shopfiles"]}
    return {
        "location": "westeurope",
        "tags": {"team": "shop"},
        "properties": {
            "containers": [{"name": "shop", "properties": container}],
            "imageRegistryCredentials": [login],
            "ipAddress": {"ports": [{"port": 80, "protocol": "TCP"}], "type": "Public", "dnsNameLabel": "shop"},
            "osType": "Linux",
            "restartPolicy": "Always",
            "volumes": [{"name": "files", "azureFile": share}],
        },
    }


class AzureContainerInstancesStandIn(AzureWebAppStandIn):
    """Resource Manager and Entra behind one TLS address."""

    kind = "azure_container_instances"
    api_version = "2023-05-01"

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self.groups: dict[str, Group] = {}

    def connection(self) -> Json:
        connection = super().connection()
        connection["extra"]["container_secrets"] = SECRETS
        return connection

    def target(self, resource: str) -> Json:
        return {"platform": self.kind, "resource_group": GROUP, "group": resource}

    def seed(self, resource: str, image: str | None) -> None:
        with self._lock:
            self.groups[resource] = Group(group(image or HELLO), at=self.world.now() - 60)

    def meddle(self, resource: str, image: str) -> None:
        with self._lock:
            one = self.groups[resource]
            one.container["image"], one.course = image, None

    def live(self, resource: str) -> Live:
        with self._lock:
            one = self.groups[resource]
            image = one.container["image"] if one.runs else None
            settled = one.course is None or one.course.done(one.elapsed)
            return Live(image=image, revision=image, settled=settled)

    def revisions(self, resource: str) -> list[str]:
        return list(self.groups[resource].made)

    def _resource(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Json | str | None]:
        found = _GROUP.match(path)
        if not found or found["subscription"] != SUBSCRIPTION or found["group"].lower() != GROUP:
            raise Refused(404, "ResourceGroupNotFound", f"The resource group of {path!r} could not be found.")
        one = self.groups.get(found["name"])
        if one is None:
            text = f"The Resource 'Microsoft.ContainerInstance/containerGroups/{found['name']}' was not found."
            raise Refused(404, "ResourceNotFound", text)
        if method == "GET":
            return 200, self._document(found["name"], one)
        if method == "PUT":
            return 200, self._put(found["name"], one, body)
        raise Refused(404, "NotFound", f"{method} {path} is no operation of this stand-in.")

    def _put(self, name: str, one: Group, body: bytes) -> Json:
        if self.busy:
            self.busy -= 1
            text = "The container group is still transitioning, please retry the request later."
            raise Refused(409, "ContainerGroupTransitioning", text)
        try:
            document = json.loads(body)
            properties = document["properties"]
            image, _ = properties["containers"][0]["properties"]["image"], properties["osType"]
            kept = {"location": document["location"], "tags": document.get("tags") or {}, "properties": properties}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Refused(400, "InvalidRequestContent", f"The request content was invalid: {error!r}") from None
        if " " in image:
            raise Refused(400, "InvalidImageName", f"The image name {image!r} is invalid.")
        one.document, one.at = kept, self.world.now()
        one.course = self.world.course(self.kind, name)
        if json.dumps(kept).count("others-canary") != len(SECRETS):
            one.course = Course("fails", 0.0, "a secret is not there")
        one.made.append(image)
        return self._document(name, one)

    def _document(self, name: str, one: Group) -> Json:
        document = copy.deepcopy(one.document)
        properties = document["properties"]
        container = properties["containers"][0]["properties"]
        for secretive in (*container["environmentVariables"], *properties["imageRegistryCredentials"]):
            secretive.pop("secureValue", None)
            secretive.pop("password", None)
        properties["volumes"][0]["azureFile"].pop("storageAccountKey", None)
        properties["ipAddress"] |= {"ip": "192.0.2.7", "fqdn": f"{name}.westeurope.azurecontainer.example.com"}
        properties["provisioningState"] = "Succeeded" if one.runs or one.failed else "Pending"
        if one.runs:
            done = one.at + (one.course.seconds if one.course else 0.0)
            state = {"state": "Running", "startTime": iso(done), "detailStatus": ""}
            container["instanceView"] = {"restartCount": 0, "currentState": state}
        elif one.failed and one.course:
            state = {"state": "Waiting", "detailStatus": "CrashLoopBackOff"}
            event = {"count": 4, "name": "Failed", "type": "Warning", "message": f"Error: {one.course.reason}"}
            container["instanceView"] = {"restartCount": 4, "currentState": state, "events": [event]}
        path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers"
        address = f"{path}/Microsoft.ContainerInstance/containerGroups/{name}"
        return {"id": address, "name": name, "type": "Microsoft.ContainerInstance/containerGroups", **document}
