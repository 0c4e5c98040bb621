"""Rules all kinds share."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from unit.services.conftest import World
from unit.services.fakes.resources import agent, context, environment, instance, mcp_server, session

from agent_runner.domain.paging import PageRequest, page_by_token
from agent_runner.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
)
from agent_runner.services.container import Services
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.mcpserver.v1.status_pb2 import VALIDATION_STATE_VALID
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference


async def test_create_makes_id_slug_and_audit_and_empties_the_status(services: Services) -> None:
    request = environment("My Stage: One!", TOKEN="x")
    request.status.audit.spec_audit.event = "forged"

    made = await services.environments.create(request)

    assert made.metadata.id.startswith("env-")
    assert len(made.metadata.id) == len("env-") + 26
    assert made.metadata.slug == "my-stage-one"
    assert made.status.audit.spec_audit.event == "created"
    assert made.status.audit.spec_audit.created_by.id == "system"
    assert made.status.audit.spec_audit.created_at == made.status.audit.status_audit.updated_at
    assert await services.environments.get(made.metadata.id) == made


async def test_an_underscore_is_taken_for_the_dash_of_an_id(services: Services) -> None:
    made = await services.environments.create(environment())

    assert await services.environments.get(made.metadata.id.replace("-", "_").upper()) == made


async def test_a_slug_is_taken_once_per_organization(services: Services) -> None:
    first = await services.environments.create(environment())
    elsewhere = environment()
    elsewhere.metadata.org = "other"

    with pytest.raises(AlreadyExistsError, match="staging"):
        await services.environments.create(environment())
    second = await services.environments.create(elsewhere)

    assert second.metadata.slug == first.metadata.slug


async def test_an_id_that_is_taken_is_refused_and_nothing_is_overwritten(services: Services) -> None:
    first = await services.environments.create(environment())
    other = environment("other")
    other.metadata.id = first.metadata.id

    with pytest.raises(AlreadyExistsError):
        await services.environments.create(other)

    assert await services.environments.get(first.metadata.id) == first


async def test_a_client_may_choose_the_id_but_not_its_form(services: Services) -> None:
    chosen, wrong = environment(), environment("other")
    chosen.metadata.id, wrong.metadata.id = "env_MINE", "agt-mine"

    assert (await services.environments.create(chosen)).metadata.id == "env-mine"
    with pytest.raises(InvalidRequestError, match=r"metadata\.id"):
        await services.environments.create(wrong)


@pytest.mark.parametrize("name", ["", "¡™£", "-- --"])
async def test_a_name_without_a_usable_character_is_refused(services: Services, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"metadata\.name"):
        await services.environments.create(environment(name))


async def test_update_replaces_the_spec_and_keeps_what_is_not_the_clients(
    services: Services, world: World
) -> None:
    made = await services.environments.create(environment(OLD="1"))
    world.clock.advance(timedelta(hours=1))
    request = environment("Renamed", NEW="2")
    request.metadata.id, request.metadata.slug, request.metadata.org = made.metadata.id, "else", "else"

    updated = await services.environments.update(request)

    assert (updated.metadata.slug, updated.metadata.org) == (made.metadata.slug, made.metadata.org)
    assert updated.metadata.name == "Renamed"
    assert dict(updated.spec.data) == {"NEW": request.spec.data["NEW"]}
    before, after = made.status.audit.spec_audit, updated.status.audit.spec_audit
    assert after.created_at == before.created_at
    assert after.updated_at.seconds - before.updated_at.seconds == 3600
    assert after.event == "updated"


async def test_update_finds_by_slug_when_there_is_no_id(services: Services) -> None:
    made = await services.environments.create(environment())
    request = environment(NEW="2")
    request.metadata.slug = made.metadata.slug

    assert (await services.environments.update(request)).metadata.id == made.metadata.id


async def test_update_needs_something_to_find(services: Services) -> None:
    with pytest.raises(InvalidRequestError, match=r"metadata\.id"):
        await services.environments.update(environment())
    unknown = environment()
    unknown.metadata.slug = "unknown"
    with pytest.raises(NotFoundError, match="unknown"):
        await services.environments.update(unknown)


async def test_apply_creates_once_and_then_updates(services: Services) -> None:
    first = await services.environments.apply(environment(A="1"))
    second = await services.environments.apply(environment(A="2"))

    assert second.metadata.id == first.metadata.id
    assert second.spec.data["A"].value == "2"


async def test_many_applies_at_once_make_one_resource(services: Services) -> None:
    made = await asyncio.gather(*(services.environments.apply(environment(A=str(i))) for i in range(20)))

    assert len({one.metadata.id for one in made}) == 1


async def test_apply_says_which_resource_is_missing(services: Services) -> None:
    with pytest.raises(NotFoundError, match="agent 'agt-none'"):
        await services.agent_instances.apply(instance("agt-none"))


async def test_updates_at_once_from_two_processes_are_all_there_in_the_end(world: World) -> None:
    one, two = world.process(), world.process()
    made = await one.environments.create(environment())
    request = environment()
    request.metadata.id = made.metadata.id

    await asyncio.gather(*(p.environments.update(request) for p in (one, two) for _ in range(10)))

    assert (await world.store.list("environment"))[0].version == 21


async def test_delete_answers_what_it_removed(services: Services) -> None:
    made = await services.environments.create(environment())

    assert await services.environments.delete(made.metadata.id) == made
    with pytest.raises(NotFoundError, match=made.metadata.id):
        await services.environments.delete(made.metadata.id)


@pytest.mark.parametrize("wrong", ["", "nonsense", "agt-01", "env-" + "x" * 500, "env-\x00", "env-ä"])
async def test_a_text_that_is_no_id_finds_nothing(services: Services, wrong: str) -> None:
    with pytest.raises((NotFoundError, InvalidRequestError)):
        await services.environments.get(wrong)


@pytest.mark.parametrize("kind", [0, 52, 53])
async def test_environments_are_found_by_every_kind_that_means_them(services: Services, kind: int) -> None:
    made = await services.environments.create(environment())
    reference = ApiResourceReference(slug="staging", kind=kind)  # type: ignore[arg-type]

    assert await services.environments.get_by_reference(reference) == made


async def test_a_reference_names_the_organization_when_it_matters(services: Services) -> None:
    made = await services.environments.create(environment())

    assert await services.environments.get_by_reference(ApiResourceReference(slug="staging")) == made
    with pytest.raises(NotFoundError, match="'other'"):
        await services.environments.get_by_reference(ApiResourceReference(slug="staging", org="other"))
    with pytest.raises(InvalidRequestError, match="slug"):
        await services.environments.get_by_reference(ApiResourceReference())
    with pytest.raises(InvalidRequestError, match="kind"):
        await services.environments.get_by_reference(ApiResourceReference(slug="staging", kind=40))


async def test_lists_come_newest_first_and_in_pages(services: Services) -> None:
    made = [await services.environments.create(environment(f"e{i}")) for i in range(7)]

    seen: list[str] = []
    token = ""
    while True:
        page = await services.environments.list(page_by_token(3, token, "env"))
        seen += [item.metadata.id for item in page.items]
        token = page.next_token
        if not token:
            break

    assert seen == [one.metadata.id for one in reversed(made)]


async def test_a_list_can_be_narrowed_by_organization_and_labels(services: Services) -> None:
    for i in range(6):
        request = environment(f"e{i}")
        request.metadata.labels["team"] = "a" if i % 2 else "b"
        await services.environments.create(request)

    page = await services.environments.list(PageRequest(2), org="acme", labels={"team": "a"})

    assert [item.metadata.name for item in page.items] == ["e5", "e3"]
    assert page.next_token
    assert not (await services.environments.list(PageRequest(2), org="none")).items


async def test_a_page_stays_small_enough_for_any_client(services: Services) -> None:
    values = {f"V{number}": "x" * 60_000 for number in range(15)}
    made = [await services.environments.create(environment(f"e{i}", **values)) for i in range(7)]

    seen: list[str] = []
    token = ""
    while True:
        page = await services.environments.list(page_by_token(50, token, "env"))
        assert sum(item.ByteSize() for item in page.items) < 4 << 20
        seen += [item.metadata.id for item in page.items]
        token = page.next_token
        if not token:
            break

    assert seen == [one.metadata.id for one in reversed(made)]


async def test_what_is_made_once_is_never_changed(services: Services) -> None:
    made = await services.execution_contexts.apply(context())

    with pytest.raises(AlreadyExistsError):
        await services.execution_contexts.apply(context())
    with pytest.raises(FailedPreconditionError):
        await services.execution_contexts.update(made)


async def test_an_mcp_server_that_is_stored_is_valid(services: Services) -> None:
    made = await services.mcp_servers.apply(mcp_server())

    assert made.status.validation_state == VALIDATION_STATE_VALID


async def test_what_is_too_large_is_refused_by_size(services: Services) -> None:
    with pytest.raises(InvalidRequestError, match="at most"):
        await services.environments.create(environment(BIG="x" * (9 << 20)))


async def test_fields_are_named_as_users_write_them(services: Services) -> None:
    request = agent()
    request.spec.skill_refs.add(slug="a", kind=43)
    request.spec.skill_refs.add(slug="b", kind=53)
    request.spec.mcp_servers.add()

    with pytest.raises(InvalidRequestError) as raised:
        await services.agents.create(request)

    assert {v.field for v in raised.value.violations} == {"spec.skill_refs[1]", "spec.mcp_servers[0].name"}


# Agents, instances, sessions


async def test_an_agent_gets_a_default_instance(services: Services, helper: Agent) -> None:
    made = await services.agent_instances.get(helper.status.default_instance_id)

    assert made.metadata.name == "Helper-default"
    assert made.metadata.slug == "helper-default"
    assert made.spec.agent_id == helper.metadata.id


async def test_an_agent_can_be_deleted_and_made_again(services: Services, helper: Agent) -> None:
    await services.agents.delete(helper.metadata.id)
    with pytest.raises(NotFoundError):
        await services.agent_instances.get(helper.status.default_instance_id)

    again = await services.agents.create(agent())

    assert (
        await services.agent_instances.get(again.status.default_instance_id)
    ).metadata.slug == "helper-default"


async def test_a_lost_default_instance_is_made_again(services: Services, helper: Agent) -> None:
    await services.agent_instances.delete(helper.status.default_instance_id)

    await services.agents.apply(agent())

    assert await services.agent_instances.get(helper.status.default_instance_id)


async def test_a_taken_slug_does_not_keep_an_agent_from_its_instance(
    services: Services, helper: Agent
) -> None:
    await services.agent_instances.create(instance(helper.metadata.id, "other-default"))

    other = await services.agents.create(agent("other"))

    made = await services.agent_instances.get(other.status.default_instance_id)
    assert made.spec.agent_id == other.metadata.id
    assert made.metadata.slug.startswith("other-default-")


async def test_an_update_keeps_the_default_instance(services: Services, helper: Agent) -> None:
    assert (
        await services.agents.apply(agent())
    ).status.default_instance_id == helper.status.default_instance_id


async def test_an_instance_needs_an_agent_and_a_session_an_instance(services: Services) -> None:
    with pytest.raises(NotFoundError, match=r"spec\.agent_id"):
        await services.agent_instances.create(instance("agt-none"))
    with pytest.raises(NotFoundError, match=r"spec\.agent_instance_id"):
        await services.sessions.create(session("ain-none"))


async def test_a_session_has_its_thread_from_the_start_and_keeps_it(
    services: Services, helper: Agent
) -> None:
    made = await services.sessions.create(session(helper.status.default_instance_id))
    assert made.spec.thread_id == f"thread-{made.metadata.id}"

    changed = session(helper.status.default_instance_id)
    changed.metadata.id, changed.spec.sandbox_id = made.metadata.id, "box"
    await services.sessions.update(changed)
    changed.spec.sandbox_id = ""
    again = await services.sessions.update(changed)

    assert (again.spec.thread_id, again.spec.sandbox_id) == (made.spec.thread_id, "box")


async def test_sessions_are_listed_by_instance_and_by_agent(services: Services, helper: Agent) -> None:
    made = await services.sessions.create(session(helper.status.default_instance_id))

    for some_id in (helper.status.default_instance_id, helper.metadata.id):
        page = await services.sessions.list_by_agent(some_id, PageRequest())
        assert [item.metadata.id for item in page.items] == [made.metadata.id]
    assert not (await services.sessions.list_by_agent("ain-none", PageRequest())).items
