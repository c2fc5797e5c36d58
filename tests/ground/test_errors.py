from __future__ import annotations

import pytest

from airflow_multideploy import errors


def test_every_error_is_one_of_ours_and_says_what_it_is_to_python() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(found) > 8
    assert all(issubclass(e, errors.MultideployError) for e in found)
    assert issubclass(errors.SpecError, ValueError)
    assert issubclass(errors.UnknownPlatform, LookupError)
    assert issubclass(errors.MissingExtra, ImportError)


def test_a_spec_error_holds_each_problem_and_names_the_service() -> None:
    error = errors.SpecError(["a: missing; add it", "b: unknown key; remove it"], service="shop")
    assert error.problems == ("a: missing; add it", "b: unknown key; remove it")
    assert str(error) == "service 'shop': a: missing; add it; b: unknown key; remove it"
    assert errors.SpecError("one").problems == ("one",)
    assert str(errors.SpecError("one")) == "one"


@pytest.mark.parametrize(
    "secret", ["AKIAABCDEFGHIJKLMNOP", "ghp_" + "a1" * 20, "https://joe:hunter22@host/x", "Bearer abcdefghijklmnop"]
)
def test_a_spec_error_never_shows_a_secret_that_stands_in_a_name(secret: str) -> None:
    error = errors.SpecError(f"targets.{secret}.x: unknown key", service=secret)
    for text in (str(error), repr(error), *error.problems):
        assert secret not in text
        assert secret[-8:] not in text
    assert error.problems[0].startswith("targets.")


def test_a_platform_error_names_its_target_and_tells_who_may_try_again() -> None:
    error = errors.PlatformError("throttled", target="shop/aws", retryable=True, retry_after=3.0)
    assert (str(error), error.retryable, error.retry_after) == ("shop/aws: throttled", True, 3.0)
    assert not errors.Drift("x is live", target="shop/aws").retryable
