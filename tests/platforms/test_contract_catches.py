"""The public conformance suite accepts a platform that keeps the contract, and catches those that break it."""

from __future__ import annotations

import pytest

from tests.platforms import contract_mutants
from tests.platforms.contract_mutants import MUTANTS, FakeSuite, Folder, Stubborn

pytest_plugins = "pytester"
pytestmark = pytest.mark.conformance  # of the suite itself, which this belongs to

SUITE = """
from tests.platforms.contract_mutants import *
class TestIt(FakeSuite): {body}
"""


class TestFake(FakeSuite):
    pass


class TestWithoutServer(FakeSuite):
    server, world_type = False, Folder


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(pytester: pytest.Pytester, name: str) -> None:
    test = MUTANTS[name][0]
    pytester.makepyfile(SUITE.format(body=f"vars().update(MUTANTS[{name!r}][1])"))
    failed = pytester.inline_run("-p", "no:cacheprovider", "-k", test).listoutcomes()[2]
    assert {report.when for report in failed} == {"call"}, f"{test} does not see it"


def test_without_a_server_a_skip_says_why(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE.format(body="server, world_type = False, Folder"))
    ended = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs", "-k", "survives_faults or rollback_twice")
    ended.assert_outcomes(passed=2, skipped=2)
    ended.stdout.fnmatch_lines("*fake: has no server, so no call of it can go wrong*")


@pytest.mark.parametrize(("stand_in", "outcome"), [("Skips", "skipped"), ("SeedsNothing", "errors")])
def test_what_a_stand_in_opened_is_closed(pytester: pytest.Pytester, stand_in: str, outcome: str) -> None:
    Stubborn.stopped.clear()
    pytester.makepyfile(SUITE.format(body=f"stand_in_type = {stand_in}"))
    ended = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "test_drift_is_refused")
    ended.assert_outcomes(**{outcome: 1})
    assert contract_mutants.Stubborn.stopped == [stand_in]
