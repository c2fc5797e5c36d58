"""Journals and ledger outside tasks: read straight from Airflow's database, for commands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_multideploy.errors import SpecError
from airflow_multideploy.release.journal import Journal
from airflow_multideploy.release.ledger import RUNNING, Ledger, Record, Spoilt, agreed

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

REFERENCE = "__airflow_state_ref__"
"""How Airflow marks a value that a worker's own state store backend keeps: the value then says only where."""


@contextmanager
def database() -> Iterator[Session]:
    """A session of Airflow's database.

    :raises SpecError: it cannot be read.
    """
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_session() as session:
            yield session
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        raise SpecError(f"Airflow's database cannot be read ({cause}); run `airflow db migrate`") from error


def unreadable() -> str:
    """Why Airflow's database cannot be read; an empty text when it can."""
    from airflow.models import Variable
    from sqlalchemy import select

    try:
        with database() as session:
            session.scalars(select(Variable.key).limit(1)).first()
    except SpecError as error:
        return str(error)
    return ""


class StoredState:
    """The state store of a service's journals and ledger, outside tasks: a `Store` that only reads.

    :raises SpecError: nothing was ever kept for that service; names those for which something was.
    """

    def __init__(self, service: str) -> None:
        from airflow.models.asset import AssetModel
        from sqlalchemy import select

        uri = "multideploy://{}/journal"
        with database() as session:
            self._asset_id = session.scalar(select(AssetModel.id).where(AssetModel.uri == uri.format(service)))
            if self._asset_id is None:
                names = session.scalars(select(AssetModel.uri).where(AssetModel.uri.like(uri.format("%"))))
                known = ", ".join(sorted(name.split("/")[2] for name in names)) or "none"
                raise SpecError(
                    f"service {service!r:.100}: Airflow knows no DAG that releases it; there are: {known}; "
                    "see that the DAG processor runs, or type `airflow dags reserialize`"
                )

    def get(self, key: str, default: Any = None) -> Any:
        """The JSON value, or the default.

        :raises SpecError: the value is elsewhere, and cannot be fetched from here.
        """
        from airflow.state import AssetScope, get_state_backend

        with database() as session:
            text = get_state_backend().get(AssetScope(asset_id=self._asset_id), key, session=session)
        if text is None:
            return default
        value = json.loads(text)
        is_reference = isinstance(value, dict) and value.keys() == {REFERENCE}
        return _fetched(key, value[REFERENCE]) if is_reference else value

    def set(self, key: str, value: Any) -> None:
        """Refused: only tasks write.

        :raises TypeError: always.
        """
        raise TypeError(f"{key}: only tasks write")

    def delete(self, key: str) -> None:
        """Refused, as `set`.

        :raises TypeError: always.
        """
        raise TypeError(f"{key}: only tasks write")


def _fetched(key: str, reference: str) -> Any:
    """What the workers' state store backend keeps for them."""
    from airflow.configuration import conf
    from airflow.exceptions import AirflowConfigException

    option = "[workers] state_store_backend"
    try:
        backend = conf.getimport("workers", "state_store_backend", fallback=None)
        if backend is None:
            raise SpecError(f"key {key!r}: the workers keep it in a backend of their own; set {option} here as there")
        return backend().deserialize_asset_state_store_from_ref(reference)
    except SpecError:
        raise
    except AirflowConfigException as error:
        raise SpecError(f"key {key!r}: {option} cannot be loaded here ({error})") from error
    except Exception as error:
        raise SpecError(f"key {key!r}: {option} does not give it: {type(error).__name__}: {error}") from error


def history(
    service: str,
    *,
    target: str | None = None,
    since: float | None = None,
    until: float | None = None,
    limit: int | None = None,
) -> list[Record | Spoilt]:
    """What was released, newest first; of a run that died before it kept its end, what the journals say.

    :param target: only releases in which this target had a part; what cannot be read is in any case among them.
    :param since: epoch seconds.
    :param until: epoch seconds.
    :param limit: so many at most.
    :raises SpecError: nobody knows the service, or what is kept cannot be read.
    """
    store = StoredState(service)
    found = (
        _now(store, each) if isinstance(each, Record) else each for each in Ledger(store, service).read(since, until)
    )
    wanted = (each for each in found if target is None or isinstance(each, Spoilt) or each.of(target) is not None)
    return list(islice(wanted, limit))


def _now(store: StoredState, record: Record) -> Record:
    if record.status != RUNNING or _under_way(record):
        return record
    read = {
        each.target: Journal(store, f"{record.service}/{each.target}", f"{each.target}.") for each in record.targets
    }
    entries = {target: entry for target, journal in read.items() if (entry := journal.read()) is not None}
    return agreed(record, entries)


def _under_way(record: Record) -> bool:
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    with database() as session:
        query = select(DagRun.state).where(DagRun.dag_id == record.dag_id, DagRun.run_id == record.run_id)
        return session.scalar(query) in ("queued", "running")


def moment(text: str | None, what: str) -> float | None:
    """Epoch seconds of an ISO 8601 date or time, which is in UTC unless it says otherwise; None of None.

    :param what: whose text it is.
    :raises SpecError: it is no date or time.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SpecError(f"{what}: is no ISO 8601 date or time; write one such as 2026-11-23T10:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def paused(services: Iterable[str]) -> list[str]:
    """Those of the services whose DAG is paused, in alphabetical order.

    :raises SpecError: the database cannot be read.
    """
    from airflow.models import DagModel
    from sqlalchemy import select

    with database() as session:
        query = select(DagModel.dag_id).where(DagModel.dag_id.in_(list(services)), DagModel.is_paused)
        return sorted(session.scalars(query))
