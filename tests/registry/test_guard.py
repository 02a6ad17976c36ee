"""No statement leaves a tenant's transaction without its tenant."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.guard import WithoutTenant, check_tenant

D, C, T, A = schema.devices, schema.credentials, schema.tenants, schema.audit
ME, OTHER = "me", "other"
MINE = D.c.tenant_id == ME

LOOSE = {
    "nothing": sa.select(D),
    "another": sa.select(D).where(D.c.tenant_id == OTHER),
    "either": sa.select(D).where(sa.or_(MINE, sa.true())),
    "two": sa.select(D).where(D.c.tenant_id.in_([ME, OTHER])),
    "not": sa.select(D).where(sa.not_(MINE)),
    "its own": sa.select(D).where(D.c.tenant_id == D.c.tenant_id),
    "a column": sa.select(D).where(D.c.name == ME),
    "joined": sa.select(D).join(C, C.c.device_id == D.c.id).where(MINE),
    "outer": sa.select(D, C)
    .outerjoin(C, sa.and_(C.c.device_id == D.c.id, D.c.tenant_id == ME))
    .where(C.c.tenant_id == ME),
    "product": sa.select(D, C).where(MINE),
    "subquery": sa.select(D).where(MINE, D.c.id.in_(sa.select(C.c.device_id))),
    "from subquery": sa.select(sa.select(D).subquery().c.id),
    "union": sa.union(sa.select(D).where(MINE), sa.select(D)),
    "exists": sa.select(D).where(MINE, sa.exists().where(C.c.device_id == D.c.id)),
    "alias": sa.select(D.alias()).where(MINE),
    "text": sa.text("SELECT 1"),
    "tenants": sa.select(T),
    "another's tenant": sa.select(T).where(T.c.id == OTHER),
    "update": D.update().values(name="x"),
    "update another": D.update().where(D.c.tenant_id == OTHER).values(name="x"),
    "update from": D.update().where(MINE, D.c.id == sa.select(C.c.device_id).scalar_subquery()),
    "delete": D.delete().where(D.c.id == "x"),
    "insert": D.insert().values(id="x"),
    "insert another": D.insert().values(tenant_id=OTHER),
    "insert many": D.insert().values([{"tenant_id": ME}, {"tenant_id": OTHER}]),
    "insert select": D.insert().from_select(["id"], sa.select(C.c.id)),
    "insert tenant": T.insert().values(id=ME),
}


@pytest.mark.parametrize("name", LOOSE)
def test_a_statement_without_its_tenant_is_refused(name: str) -> None:
    with pytest.raises(WithoutTenant):
        check_tenant(LOOSE[name], ME)


def test_rows_of_another_tenant_are_refused() -> None:
    with pytest.raises(WithoutTenant):
        check_tenant(D.insert(), ME, [{"tenant_id": ME}, {"tenant_id": OTHER}])
    check_tenant(D.insert(), ME, [{"tenant_id": ME}])


HELD = {
    "select": sa.select(D).where(MINE, D.c.name == "x"),
    "nested and": sa.select(D).where(sa.and_(D.c.name == "x", sa.and_(MINE, D.c.id == "y"))),
    "join": sa.select(D, C).join(C, C.c.tenant_id == ME).where(MINE),
    "outer": sa.select(D, C).outerjoin(C, C.c.tenant_id == ME).where(MINE),
    "subquery": sa.select(D).where(
        MINE, D.c.id.in_(sa.select(C.c.device_id).where(C.c.tenant_id == ME))
    ),
    "tenants": sa.select(T).where(T.c.id == ME),
    "users": sa.select(schema.users),  # they belong to no tenant
    "update": D.update().where(MINE).values(name="x"),
    "delete": D.delete().where(MINE),
    "insert": A.insert().values(tenant_id=ME, number=1),
}


@pytest.mark.parametrize("name", HELD)
def test_a_statement_with_its_tenant_passes(name: str) -> None:
    check_tenant(HELD[name], ME)
