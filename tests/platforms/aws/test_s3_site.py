"""The adapter of static sites: the shared contract, and what only CloudFront does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.platforms.aws import s3_site as aws_s3_site
from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.aws_s3_site import AwsS3SiteStandIn
from tests.stand_ins.aws_wire import AwsError, Exchange, models_read_once, problems


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with models_read_once():
        yield


class TestAwsS3Site(PlatformContract):
    rollout_seconds = 0.1
    waiting = 20  # 200 do the same through the same base class in the tests of ECS

    def make_stand_in(self, world: World) -> StandIn:
        return AwsS3SiteStandIn(world)

    def test_a_rollout_that_never_ends_can_be_rolled_back(
        self, stand_in: Any, world: World, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The invalidation comes after CloudFront's edges know the folder: until then there is no handle to wait with,
        and ``deploy`` says so with a retryable error. What the suite asks for otherwise holds: it can be rolled back,
        and without invalidations there is a handle at once."""
        monkeypatch.setattr(aws_s3_site, "PATIENCE", 0.2)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "hangs"))
        snapshot, release = self.platform(stand_in).snapshot(), self.release()
        for _ in range(2):
            with pytest.raises(PlatformError, match=r"do not all know /releases/1.1.0 yet") as caught:
                self.platform(stand_in).deploy(release, snapshot)
            assert (caught.value.retryable, caught.value.retry_after) == (True, aws_s3_site.AGAIN)
        assert len(stand_in.revisions(RESOURCE)) == 1
        plain = self.platform(stand_in, invalidate=[])
        handle = plain.deploy(release, snapshot)
        assert self.look(plain, handle, mode).state is State.PROGRESSING
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_way_back_that_failed_can_be_gone_again(self, stand_in: Any, world: World, mode: str) -> None:
        """CloudFront has no change that fails on its way. A way back fails when the old folder is gone, and can be gone
        when somebody has brought it back."""
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        page = stand_in.objects.pop("releases/1.0.0/index.html")
        with pytest.raises(PlatformError, match=r"upload the site to /releases/1.0.0 first") as caught:
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert not caught.value.retryable
        assert stand_in.live(RESOURCE).image == NEW
        stand_in.objects["releases/1.0.0/index.html"] = page
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.fixture
    def front(self, stand_in: Any) -> Iterator[Any]:
        client = stand_in.client()
        yield client
        client.close()

    # --- what visitors get -------------------------------------------------------------------------------------------

    def test_healthy_means_that_no_edge_holds_the_old_page(self, stand_in: Any, world: World, mode: str) -> None:
        world.per_platform[stand_in.kind], world.seconds = world.seconds, 60.0
        assert stand_in.visit(RESOURCE) == (200, "1.0.0")
        _, handle, _ = self.start(stand_in)
        assert stand_in.visit(RESOURCE) == (200, "1.0.0")
        seen = self.look(self.platform(stand_in), handle, mode)
        assert (seen.state, seen.reason) == (State.PROGRESSING, "invalidation InProgress")
        stand_in._known[RESOURCE].invalidations[0].change.began -= 60.0
        assert self.look(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert stand_in.visit(RESOURCE) == (200, "1.1.0")

    def test_only_the_folder_is_changed_and_all_comes_back(self, stand_in: Any, mode: str) -> None:
        before = copy.deepcopy(stand_in._known[RESOURCE].config)
        snapshot, handle, release = self.start(stand_in)
        after = copy.deepcopy(stand_in._known[RESOURCE].config)
        assert after["Origins"]["Items"][0].pop("OriginPath") == "/releases/1.1.0"
        assert {**before["Origins"]["Items"][0]}.pop("OriginPath") == "/releases/1.0.0"
        assert "hunter2" not in snapshot.model_dump_json() + handle.model_dump_json()
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in._known[RESOURCE].config == before

    def test_what_the_site_itself_answers_counts(self, stand_in: Any, world: World, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        stand_in._known[RESOURCE].cached = None
        del stand_in.objects["releases/1.1.0/index.html"]
        seen = self.look(self.platform(stand_in), handle, mode)
        assert (seen.state, seen.reason) == (
            State.FAILED,
            "the site answers 404: <Error><Code>NoSuchKey</Code></Error>",
        )
        world.call_faults.append(CallFault(stand_in.kind, "500", operation="GET site"))
        assert self.look(self.platform(stand_in), handle, mode).state is State.PROGRESSING
        world.call_faults.append(CallFault(stand_in.kind, "reset", operation="GET site"))
        with pytest.raises(PlatformError, match=r"GET http.*Error") as caught:
            self.look(self.platform(stand_in), handle, mode)
        assert caught.value.retryable
        assert self.look(self.platform(stand_in, url=None), handle, mode).state is State.HEALTHY

    # --- each write at most once -------------------------------------------------------------------------------------

    @pytest.mark.parametrize("answer", ["lost", "malformed"])
    def test_one_invalidation_each_way(self, stand_in: Any, world: World, answer: Any) -> None:
        world.call_faults.append(CallFault(stand_in.kind, answer, operation="CreateInvalidation"))
        snapshot, handle, release = self.start(stand_in)
        world.call_faults.append(CallFault(stand_in.kind, answer, operation="CreateInvalidation"))
        self.undo(stand_in, release, snapshot, handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        references = [i.batch["CallerReference"] for i in stand_in._known[RESOURCE].invalidations]
        assert len(references) == 2
        assert references[0].startswith(release.release_id)
        assert references[1].startswith(f"{release.release_id}-back")
        assert stand_in.revisions(RESOURCE) == ["/releases/1.1.0", "/releases/1.0.0"]

    def test_no_invalidation_unless_wanted(self, stand_in: Any, world: World) -> None:
        platform = self.platform(stand_in, invalidate=[])
        snapshot = platform.snapshot()
        platform.rollback(self.release(), snapshot, platform.deploy(self.release(), snapshot))
        assert stand_in.revisions(RESOURCE) == ["/releases/1.1.0", "/releases/1.0.0"]
        assert stand_in._known[RESOURCE].invalidations == []

    def test_a_change_that_came_in_between_is_seen(self, stand_in: Any, front: Any) -> None:
        snapshot = self.platform(stand_in).snapshot()
        steps = self.platform(stand_in)._deploy(self.release(), snapshot)  # type: ignore[attr-defined]
        call = next(steps)
        while call[0] != "update_distribution":
            call = steps.send({"ETag": "x"} if call[0].startswith("s3:") else getattr(front, call[0])(**call[1]))
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(front.exceptions.PreconditionFailed) as refused:
            front.update_distribution(**call[1])
        with pytest.raises(PlatformError) as told, self.platform(stand_in)._errors("update_distribution"):  # type: ignore[attr-defined]
            raise refused.value
        with pytest.raises(PlatformError, match="looking again") as caught:
            steps.throw(told.value)
        assert caught.value.retryable
        with pytest.raises(Drift):
            self.platform(stand_in).deploy(self.release(), snapshot)

    def test_too_many_invalidations_are_waited_for(self, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: Any) -> Any:
            raise AwsError("TooManyInvalidationsInProgress", "Your request exceeds the limit of invalidations.")

        platform, release = self.platform(stand_in), self.release()
        snapshot = platform.snapshot()
        with monkeypatch.context() as patch:
            patch.setitem(stand_in.operations, "CreateInvalidation", full)
            with pytest.raises(PlatformError, match="waiting for their end") as caught:
                platform.deploy(release, snapshot)
        assert (caught.value.retryable, caught.value.retry_after) == (True, aws_s3_site.AGAIN)
        assert platform.deploy(release, snapshot).data["invalidation"]
        assert stand_in.revisions(RESOURCE) == ["/releases/1.1.0"]

    # --- what is refused ---------------------------------------------------------------------------------------------

    def test_a_release_that_was_not_uploaded_is_refused(self, stand_in: Any, world: World) -> None:
        platform = self.platform(stand_in)
        release = self.release("registry.example.com/shop:2.0.0")
        with pytest.raises(PlatformError, match=r"/releases/2.0.0/index.html is not in the bucket") as caught:
            platform.deploy(release, platform.snapshot())
        assert not caught.value.retryable
        assert world.calls_of(stand_in.kind, writes=True) == []

    @pytest.mark.parametrize("path", ["releases/${version}", "/releases/${version}/", "/releases", "/${wrong}"])
    def test_a_folder_that_is_none(self, stand_in: Any, path: str) -> None:
        with pytest.raises(SpecError, match="path"):
            self.platform(stand_in, path=path)

    def test_which_origin(self, stand_in: Any) -> None:
        items = stand_in._known[RESOURCE].config["Origins"]["Items"]
        items.append({**copy.deepcopy(items[0]), "Id": "api", "DomainName": "api.example.com"})
        with pytest.raises(PlatformError, match="origins bucket, api: name one in the target's 'origin'"):
            self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match=r"api\.example\.com is no S3 bucket"):
            self.platform(stand_in, origin="api").snapshot()
        platform = self.platform(stand_in, origin="bucket")
        platform.deploy(self.release(), platform.snapshot())
        assert [o["OriginPath"] for o in stand_in._known[RESOURCE].config["Origins"]["Items"]] == [
            "/releases/1.1.0",
            "/releases/1.0.0",
        ]

    def test_a_disabled_distribution_is_not_healthy(self, stand_in: Any, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        stand_in._known[RESOURCE].config["Enabled"] = False
        assert self.look(self.platform(stand_in), handle, mode).state is State.FAILED

    # --- the contract of AWS -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("story", ["deploy", "fails", "never deployed", "faults"])
    def test_every_exchange_fits_the_model(self, stand_in: Any, world: World, story: str, mode: str) -> None:
        if story == "never deployed":
            stand_in.seed(RESOURCE, None)
        if story == "fails":
            world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        if story == "faults":
            world.call_faults.append(CallFault(stand_in.kind, "lost", operation="UpdateDistribution"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is (State.FAILED if story == "fails" else State.HEALTHY)
        self.undo(stand_in, release, snapshot, handle, mode)
        called = {exchange.operation for exchange in stand_in.exchanges}
        assert called == {
            "GetDistribution",
            "UpdateDistribution",
            "CreateInvalidation",
            "GetInvalidation",
            "HeadObject",
        }
        assert [line for exchange in stand_in.exchanges for line in problems(exchange) if "404 is no" not in line] == []


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (Exchange("cloudfront", "UpdateDistribution", {"Id": "x"}), "Missing required parameter"),
        (Exchange("cloudfront", "GetDistribution", {"Id": "x"}, {"Distribution": {"Id": 1}}), "Invalid type"),
        (Exchange("cloudfront", "GetDistribution", {"Id": "x"}, {"Tag": "x"}), "unknown"),
        (Exchange("cloudfront", "GetDistribution", {"Id": "x"}, error="PreconditionFailed"), "is no error of"),
        (Exchange("s3", "HeadObject", {"Bucket": "b"}), "Missing required parameter"),
    ],
)
def test_the_checker_refuses_what_does_not_fit(exchange: Exchange, words: str) -> None:
    assert any(words in line for line in problems(exchange)), problems(exchange)
