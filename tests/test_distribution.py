"""The built wheel, and what Airflow makes of it. It is laid before everything else on the path, not installed."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import airflow_multideploy
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.provider_info import get_provider_info
from airflow_multideploy.sandbox import Sandbox

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = "airflow-provider-multideploy"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def unpacked(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def fresh(site: Path | None, home: Path, *argv: str) -> str:
    """The output of a new interpreter; it finds the wheel's files first when their folder is given."""
    env = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "false"}
    env |= {"PYTHONPATH": str(site)} if site else {}
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, cwd=home, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    package = ROOT / "airflow_multideploy"
    files = {str(file.relative_to(ROOT)) for file in package.rglob("*") if file.suffix in (".py", ".typed")}
    assert "airflow_multideploy/py.typed" in files
    info = f"airflow_provider_multideploy-{PROJECT['version']}.dist-info"
    extra = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == files | extra
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")


def test_the_wheel_asks_for_no_cloud_unless_an_extra_is_named(wheel: zipfile.ZipFile) -> None:
    info = f"airflow_provider_multideploy-{PROJECT['version']}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert metadata["Name"] == NAME == get_provider_info()["package-name"]
    assert metadata["Version"] == airflow_multideploy.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    always = {need for need in metadata.get_all("Requires-Dist") or [] if "extra ==" not in need}
    assert {need.split(">")[0] for need in always} == {"apache-airflow", "apache-airflow-providers-http"}
    assert set(metadata.get_all("Provides-Extra") or []) >= {"aws", "azure", "gcp", "sandbox", "all", "dev"}
    points = configparser.ConfigParser(delimiters="=")
    points.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert {group: dict(points[group]) for group in points.sections()} == PROJECT["entry-points"]


BASE = """
import importlib.abc, json, sys
# Not the clouds' provider infos: their distributions' entry points are still there, and Airflow loads them.
ABSENT = ("airflow.providers.amazon.aws", "airflow.providers.google.cloud", "airflow.providers.google.common",
          "airflow.providers.microsoft.azure.hooks", "airflow.providers.microsoft.azure.utils", "boto3", "botocore",
          "aiobotocore", "azure", "google.cloud", "google.api_core", "google.auth", "grpc", "moto", "trustme", "a2wsgi")
class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in ABSENT):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NotInstalled())
before = set(sys.modules)
import airflow_multideploy
first = sorted(set(sys.modules) - before)
names = {name: getattr(airflow_multideploy, name).__name__ for name in airflow_multideploy._PUBLIC}
from airflow_multideploy.platforms.kinds import kinds, platform_type
loaded = {kind: platform_type(kind).__name__ for kind in kinds()}
print(json.dumps({"file": airflow_multideploy.__file__, "first": first, "names": names, "kinds": loaded}))
"""


def test_a_base_install_has_every_public_name_and_platform_without_any_sdk(unpacked: Path, tmp_path: Path) -> None:
    found = json.loads(fresh(unpacked, tmp_path, "-c", BASE))
    assert Path(found["file"]).is_relative_to(unpacked)
    assert "airflow_multideploy" in found["first"]
    assert not [name for name in found["first"] if name.split(".")[0] in ("airflow", "pydantic", "sqlalchemy")]
    assert found["names"] == {name: name for name in airflow_multideploy._PUBLIC}
    assert set(found["kinds"]) == set(PROJECT["entry-points"]["airflow_multideploy.platforms"])


AIRFLOW = """
import json, logging, warnings
said = []
class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
from airflow.providers_manager import ProvidersManager
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
from airflow.sdk import Asset
from airflow import plugins_manager
logging.getLogger().addHandler(Keep(logging.WARNING))  # after Airflow has set up its logging
mine, ours = "airflow-provider-multideploy", "multideploy"
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    manager, runtime = ProvidersManager(), ProvidersManagerTaskRuntime()
    for each in (manager, runtime):  # to load the hooks of all the others takes half a minute
        each.initialize_providers_list()
        each._provider_dict = {mine: each._provider_dict[mine]}
    hooks = {kind: hook and hook.hook_class_name for kind, hook in runtime.hooks.items() if kind.startswith(ours)}
    widgets = {name: widget.is_sensitive for name, widget in manager.connection_form_widgets.items()}
    manager._import_info_from_all_hooks()
    links = list(manager.extra_links_class_names)
    triggers = [each.trigger_class_name for each in manager.trigger]
    commands = [function.__module__ for function in manager.cli_command_functions]
    behaviours = sorted(manager.field_behaviours)
    config = dict(manager.provider_configs)[mine]["multideploy"]
    plugins, _ = plugins_manager._get_plugins()
    uris = [Asset(name="a", uri=uri).uri for uri in ("multideploy://shop", "MULTIDEPLOY://shop/aws/")]
    refused = []
    for uri in ("multideploy://shop/aws/blue", "multideploy://shop/aws?x=1", "multideploy:///aws"):
        try:
            Asset(name="b", uri=uri)
        except ValueError as error:
            refused.append(str(error))
said += [str(each.message) for each in warned]
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
forms = {meta.connection_type: meta.hook_name for meta in HookMetaService.hook_meta_data()}
print(json.dumps({
    "hooks": hooks, "widgets": widgets, "links": links, "triggers": triggers,
    "commands": commands, "behaviours": behaviours, "config": list(config["options"]), "uris": uris, "refused": refused,
    "plugins": [plugin.name for plugin in plugins], "forms": forms,
    "said": said}))
"""


def test_airflow_takes_all_of_it_without_a_word(tmp_path: Path) -> None:
    # The installed package: with the wheel beside it, its plugin would be there twice, which Airflow remarks upon.
    found = json.loads(fresh(None, tmp_path, "-c", AIRFLOW).splitlines()[-1])
    assert found["said"] == []
    assert found["hooks"] == {
        "multideploy_azure": "airflow_multideploy.plugin.hooks.AzureConnectionHook",
        "multideploy_gcp": "airflow_multideploy.plugin.hooks.GcpConnectionHook",
    }
    assert found["behaviours"] == ["multideploy_azure", "multideploy_gcp"]
    assert [name for name, secret in found["widgets"].items() if secret] == ["extra__multideploy_gcp__keyfile_dict"]
    assert found["forms"]["multideploy_gcp"] == "Google Cloud (Multi Deploy)"
    assert found["links"] == ["airflow_multideploy.operators.console.ConsoleLink"]
    assert found["triggers"] == ["airflow_multideploy.operators.trigger"]
    assert found["commands"] == ["airflow_multideploy.cli.commands"]
    assert found["config"] == ["catalog_file", "reconcile", "reconcile_schedule", "answer"]
    assert "multideploy" in found["plugins"]
    assert found["uris"] == ["multideploy://shop", "multideploy://shop/aws"]
    assert len(found["refused"]) == 3


def test_airflow_lists_it_and_has_its_commands(unpacked: Path, tmp_path: Path) -> None:
    listed = json.loads(fresh(unpacked, tmp_path, "-m", "airflow", "providers", "list", "--output", "json"))
    assert [each["version"] for each in listed if each["package_name"] == NAME] == [PROJECT["version"]]
    text = fresh(unpacked, tmp_path, "-m", "airflow", "multideploy", "--help")
    assert all(command in text for command in ("validate", "schema", "platforms", "sandbox", "demo"))


def test_provider_info_is_as_airflows_schema_says_and_names_what_exists() -> None:
    import airflow

    info = get_provider_info()
    (folder,) = airflow.__path__[:1]
    jsonschema.validate(info, json.loads((Path(folder) / "provider_info.schema.json").read_text()))
    modules = {m for key in ("operators", "hooks", "triggers") for each in info[key] for m in each["python-modules"]}
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    classes = (each for name in modules for each in vars(importlib.import_module(name)).values())
    named = {each.kind for each in classes if isinstance(each, type) and issubclass(each, DeployOperator) and each.kind}
    assert named == set(PROJECT["entry-points"]["airflow_multideploy.platforms"])


def test_the_forms_have_a_field_for_all_that_a_connection_to_a_stand_in_holds() -> None:
    forms: dict[str, dict[str, Any]] = {f["connection-type"]: f for f in get_provider_info()["connection-types"]}
    with Sandbox(platforms=("azure_web_app", "gcp_cloud_run")) as sandbox:
        connections = sandbox.connections()
    for conn_id, form in (("azure_prod", "multideploy_azure"), ("gcp_prod", "multideploy_gcp")):
        hidden = forms[form]["ui-field-behaviour"]["hidden-fields"]
        assert set(connections[conn_id]["extra"]) <= set(forms[form]["conn-fields"])
        assert not set(connections[conn_id]) - {"conn_type", "extra"} & set(hidden)
