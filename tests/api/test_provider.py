"""The provider as the API sees it: what is believed, what is sent, and what is refused."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx2
import pytest

from support.fake_oidc import (
    FakeProvider,
    fake_provider,
    new_key,
    signed_by_stranger,
    signed_with_lone_surrogate,
    signed_with_public_key,
    unsigned,
)
from tunnelmux.api.oidc.provider import Attempt, OIDCError, Provider, ProviderAway
from tunnelmux.config import Secret
from tunnelmux.config.api import OIDCConfig

PUBLIC_URL = "https://tunnels.example.com"


def client_of(fake: FakeProvider, secret: str | None = None, **settings: Any) -> Provider:
    config = OIDCConfig(issuer=fake.issuer, client_id=fake.client_id, **settings)
    return Provider(config, Secret(secret) if secret is not None else None, PUBLIC_URL)


async def exchange(provider: Provider, fake: FakeProvider, **query: str) -> dict[str, Any]:
    """A whole sign-in; the claims that were believed."""
    attempt = Attempt.new()
    url = await provider.authorization_url(attempt)
    answer = dict(parse_qsl(fake.callback_for(url, **query)))
    _, claims = await provider.exchange(answer, attempt)
    return claims


async def test_the_browser_is_sent_with_pkce_state_and_nonce() -> None:
    async with fake_provider() as fake:
        attempt = Attempt.new()
        url = urlsplit(await client_of(fake).authorization_url(attempt))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        assert f"{url.scheme}://{url.netloc}{url.path}" == f"{fake.issuer}/authorize"
        assert query["response_type"] == "code"
        assert query["redirect_uri"] == f"{PUBLIC_URL}/api/auth/callback"
        assert query["state"] == attempt.state
        assert query["nonce"] == attempt.nonce
        assert query["code_challenge_method"] == "S256"
        assert attempt.verifier not in url.query
        assert "openid" in query["scope"].split()


async def test_the_claims_of_a_good_token_are_given() -> None:
    async with fake_provider() as fake:
        claims = await exchange(client_of(fake), fake)
        assert claims["sub"] == "alice"


@pytest.mark.parametrize(
    ("secret", "auth", "in_form", "basic"),
    [
        (None, "client_secret_basic", False, None),
        (None, "client_secret_post", False, None),
        ("s3cret", "client_secret_basic", False, "public:s3cret"),
        ("s3cret", "client_secret_post", True, None),
    ],
)
async def test_the_secret_is_sent_as_set_and_a_public_client_sends_none(
    secret: str | None, auth: str, in_form: bool, basic: str | None
) -> None:
    async with fake_provider() as fake:
        await exchange(client_of(fake, secret, client_auth=auth), fake)
        form, fields = fake.token_requests[0]
        assert form.get("client_secret") == (secret if in_form else None)
        sent = fields.get("authorization")
        if basic is None:
            assert sent is None
        else:
            assert sent is not None
            assert base64.b64decode(sent.removeprefix("Basic ")).decode() == basic
        assert len(form["code_verifier"]) >= 43


WRONG_TOKENS: dict[str, Callable[[FakeProvider], None]] = {
    "another nonce": lambda fake: fake.claims.update(nonce="another"),
    "no nonce": lambda fake: fake.claims.update(nonce=None),
    "another audience": lambda fake: fake.claims.update(aud="another"),
    "no audience": lambda fake: fake.claims.update(aud=None),
    "made for another party": lambda fake: fake.claims.update(azp="another"),
    "another issuer": lambda fake: fake.claims.update(iss="https://another.example.com"),
    "no issuer": lambda fake: fake.claims.update(iss=None),
    "no subject": lambda fake: fake.claims.update(sub=None),
    "empty subject": lambda fake: fake.claims.update(sub=""),
    "subject is no text": lambda fake: fake.claims.update(sub=7),
    "expired": lambda fake: fake.claims.update(exp=int(time.time()) - 600),
    "no end": lambda fake: fake.claims.update(exp=None),
    "made in the future": lambda fake: fake.claims.update(iat=int(time.time()) + 3600),
    "algorithm none": lambda fake: setattr(fake, "sign", unsigned),
    "HS256 with the public key": lambda fake: setattr(fake, "sign", signed_with_public_key),
    "another key under the same id": lambda fake: setattr(fake, "sign", signed_by_stranger),
    "a name that is no text": lambda fake: setattr(fake, "sign", signed_with_lone_surrogate),
    "rubbish": lambda fake: setattr(fake, "sign", lambda *_: "not.a.token"),
    "absent": lambda fake: setattr(
        fake, "token_answer", lambda _: b'{"access_token": "a", "expires_in": 1}'
    ),
}


@pytest.mark.parametrize("spoil", WRONG_TOKENS.values(), ids=WRONG_TOKENS)
async def test_a_wrong_token_is_refused(spoil: Callable[[FakeProvider], None]) -> None:
    async with fake_provider() as fake:
        provider = client_of(fake)
        spoil(fake)
        with pytest.raises(OIDCError):
            await exchange(provider, fake)


async def test_an_algorithm_that_is_not_listed_is_refused() -> None:
    async with fake_provider() as fake:
        with pytest.raises(OIDCError):
            await exchange(client_of(fake, algorithms=["ES256"]), fake)


async def test_clocks_may_differ_as_far_as_set() -> None:
    async with fake_provider() as fake:
        fake.claims["exp"] = int(time.time()) - 20
        assert (await exchange(client_of(fake, clock_skew=60), fake))["sub"] == "alice"
        with pytest.raises(OIDCError):
            await exchange(client_of(fake, clock_skew=5), fake)


@pytest.mark.parametrize("iss", ["https://another.example.com", ""], ids=["another", "none"])
async def test_the_answer_of_another_provider_is_refused(iss: str) -> None:
    async with fake_provider() as fake:
        with pytest.raises(OIDCError, match="another provider"):
            await exchange(client_of(fake), fake, iss=iss)
        assert fake.token_requests == []


async def test_the_providers_refusal_is_told_and_no_code_is_exchanged() -> None:
    async with fake_provider() as fake:
        with pytest.raises(OIDCError, match="access_denied"):
            await exchange(client_of(fake), fake, error="access_denied")
        assert fake.token_requests == []


async def test_rotated_keys_are_found() -> None:
    async with fake_provider() as fake:
        provider = client_of(fake)
        await exchange(provider, fake)
        provider._keys_read -= 61  # a minute later
        fake.keys.insert(0, new_key())
        assert (await exchange(provider, fake))["sub"] == "alice"


async def test_forged_tokens_do_not_make_us_call_the_provider() -> None:
    async with fake_provider() as fake:
        provider = client_of(fake)
        await exchange(provider, fake)
        fake.sign = signed_by_stranger
        for _ in range(5):
            with pytest.raises(OIDCError):
                await exchange(provider, fake)
        assert fake.paths.count("/keys") == 1


async def test_a_silent_provider_is_given_up_in_time() -> None:
    async with fake_provider() as fake:
        fake.is_silent = True
        with pytest.raises(ProviderAway):
            await client_of(fake, timeout=0.1).authorization_url(Attempt.new())


@pytest.mark.parametrize(
    "answer",
    [b"rubbish", b"[]", b"{}", b'{"access_token": 7}', b"{" + b" " * 10 + b"}", b"[" * 100_000],
)
async def test_a_rubbish_token_answer_is_the_providers_fault(answer: bytes) -> None:
    async with fake_provider() as fake:
        fake.token_answer = lambda _: answer
        with pytest.raises(ProviderAway):
            await exchange(client_of(fake), fake)


@pytest.mark.parametrize(
    "metadata",
    [{"issuer": "https://another.example.com"}, {"token_endpoint": None}, {"jwks_uri": 7}],
)
async def test_metadata_that_is_not_this_providers_is_refused(metadata: dict[str, Any]) -> None:
    async with fake_provider() as fake:
        fake.metadata = metadata
        with pytest.raises(ProviderAway):
            await client_of(fake).authorization_url(Attempt.new())


async def test_a_provider_that_goes_away_later_is_still_known() -> None:
    async with fake_provider() as fake:
        provider = client_of(fake, timeout=0.1)
        await provider.authorization_url(Attempt.new())
        provider._metadata_read -= 3601  # an hour later
        fake.is_silent = True
        assert await provider.logout_url("an-id-token")


LOGOUT = {"http://schemas.openid.net/event/backchannel-logout": {}}


async def test_a_logout_token_is_believed() -> None:
    async with fake_provider() as fake:
        token = fake.id_token(events=LOGOUT, jti="1", sid="a-session")
        claims = await client_of(fake).check_logout_token(token)
        assert claims["sid"] == "a-session"


@pytest.mark.parametrize(
    "claims",
    [
        {"events": None},
        {"events": {"another": {}}},
        {"events": LOGOUT, "jti": None},
        {"events": LOGOUT, "nonce": "a-nonce"},
        {"events": LOGOUT, "sub": None, "sid": None},
        {"events": LOGOUT, "aud": "another"},
        {"events": LOGOUT, "exp": 1},
    ],
)
async def test_what_is_no_logout_token_is_refused(claims: dict[str, Any]) -> None:
    async with fake_provider() as fake:
        token = fake.id_token(**{"jti": "1", "sid": "a-session", **claims})
        with pytest.raises(OIDCError):
            await client_of(fake).check_logout_token(token)


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"none"}',
        b'{"alg":["RS256"]}',
        b'{"alg":{}}',
        b'{"alg":"RS256","kid":{}}',
        b'{"alg":"RS256","crit":5}',
        b'{"alg":"RS256","crit":[[]]}',
        b'{"alg":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"[1]",
        b"\xff",
    ],
)
async def test_a_header_of_any_types_makes_no_logout_token(header: bytes) -> None:
    """Any stranger can send one, and its header is read before its signature is checked."""
    async with fake_provider() as fake:
        _, claims, signature = fake.id_token(events=LOGOUT, jti="1", sid="s").split(".")
        begin = base64.urlsafe_b64encode(header).rstrip(b"=").decode()
        with pytest.raises(OIDCError):
            await client_of(fake).check_logout_token(f"{begin}.{claims}.{signature}")


async def test_no_secret_is_in_a_repr() -> None:
    async with fake_provider() as fake:
        provider = client_of(fake, "s3cret")
        attempt = Attempt.new()
        answer = fake.callback_for(await provider.authorization_url(attempt))
        tokens, _ = await provider.exchange(dict(parse_qsl(answer)), attempt)
        for shown in (repr(provider), repr(tokens), repr(attempt)):
            assert "s3cret" not in shown
            assert "an-access-token" not in shown
            assert attempt.verifier not in shown


async def test_metadata_and_keys_have_the_configured_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # httpx gives up after 5 s by itself, which a busy machine exceeds.
    given: list[object] = []

    class Client(httpx2.AsyncClient):
        def __init__(self, **options: Any) -> None:
            given.append(options.get("timeout"))
            super().__init__(**options)

    async with fake_provider() as fake:
        config = OIDCConfig(issuer=fake.issuer, client_id=fake.client_id, timeout=30)
        provider = Provider(config, None, "https://tunnels.example.com")
        monkeypatch.setattr(httpx2, "AsyncClient", Client)
        await provider.check()
    assert given == [30]
