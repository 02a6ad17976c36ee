"""The client of the OpenID provider: its metadata and keys, and requests to it.

OpenID Connect Core 1.0, RFC 7636 (PKCE, S256 only), RFC 9207 (`iss` in the authorization answer).
A client without a secret is a public one: its token requests carry no secret in any form. Each
request uses an OAuth client object of its own, since such an object keeps the token that it got;
they share one TLS context, which is what makes them costly.
"""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2
import trio
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from tunnelmux.config import Secret
from tunnelmux.config.api import OIDCConfig
from tunnelmux.errors import TunnelmuxError
from tunnelmux.json_text import BadJson, read_json

__all__ = ["Attempt", "OIDCError", "Provider", "ProviderAway", "Tokens"]

CALLBACK_PATH = "/api/auth/callback"

_SCOPE = "openid profile email offline_access"

_METADATA_BYTES = 1024 * 1024
# More than any provider's metadata, keys or token answer.

_KEYS_RELOAD = 60.0
# Seconds between two reads of the provider's keys because of an unknown key id: an attacker who
# sends made-up key ids must not make this server call the provider each time.

_METADATA_AGE = 3600.0
# Seconds after which metadata is read again.

_NO_TOKEN = (JoseError, ValueError, TypeError, AttributeError, KeyError, RecursionError)
# What reading a stranger's token can raise: joserfc checks the types of some fields only.

_LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


class OIDCError(TunnelmuxError):
    """The provider or the browser sent something that must not be accepted; the text says what."""


class ProviderAway(OIDCError):
    """The provider does not answer, or not as a provider does."""


@dataclass(frozen=True, slots=True, repr=False)
class Attempt:
    """A sign-in in progress: the values that the callback must match."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def new(cls) -> Attempt:
        """Fresh random values; the verifier has 64 characters (RFC 7636 4.1: 43 to 128)."""
        return cls(secrets.token_urlsafe(24), secrets.token_urlsafe(24), secrets.token_urlsafe(48))


@dataclass(frozen=True, slots=True, repr=False)
class Tokens:
    """The provider's tokens for a code or a refresh token. Kept on the server only."""

    access_token: str
    refresh_token: str | None
    id_token: str | None
    lifetime: float
    """Seconds for which the access token is good."""


class Provider:
    """One OpenID provider for one client. Reads its metadata when first asked, and not before."""

    def __init__(self, config: OIDCConfig, secret: Secret | None, public_url: str) -> None:
        self._config = config
        self._secret = secret
        self._redirect_uri = public_url.rstrip("/") + CALLBACK_PATH
        self._after_logout = public_url.rstrip("/") + "/"
        self._tls = ssl.create_default_context(
            cafile=str(config.ca_file) if config.ca_file is not None else None
        )
        self._metadata: Mapping[str, Any] | None = None
        self._metadata_read = -_METADATA_AGE
        self._keys: KeySet | None = None
        self._keys_read = -_KEYS_RELOAD
        self._lock = trio.Lock()

    @property
    def issuer(self) -> str:
        """The provider's identifier; a user is (issuer, subject)."""
        return self._config.issuer

    @property
    def _metadata_url(self) -> str:
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"

    async def check(self) -> None:
        """Read the provider's metadata again. Raises OIDCError, with the cause."""
        self._check_metadata(await self._get(self._metadata_url))

    async def authorization_url(self, attempt: Attempt) -> str:
        """Where the browser goes to sign in. Raises ProviderAway."""
        metadata = await self._read_metadata()
        async with self._client() as client:
            url, _state = client.create_authorization_url(
                metadata["authorization_endpoint"],
                state=attempt.state,
                code_verifier=attempt.verifier,
                nonce=attempt.nonce,
                **({"prompt": self._config.prompt} if self._config.prompt else {}),
            )
        return str(url)

    async def exchange(
        self, query: Mapping[str, str], attempt: Attempt
    ) -> tuple[Tokens, dict[str, Any]]:
        """The tokens and the verified claims for the code in a callback's query.

        Raises OIDCError when anything is not as the attempt says, ProviderAway when the provider
        does not answer.
        """
        metadata = await self._read_metadata()
        self._check_issuer(query, metadata)
        if "error" in query:
            raise OIDCError(f"the provider refused the sign-in: {_short(query['error'])}")
        if not query.get("code"):
            raise OIDCError("the provider sent no code")
        tokens = await self._token_request(
            metadata, grant_type="authorization_code", code=query["code"], attempt=attempt
        )
        if tokens.id_token is None:
            raise OIDCError("the provider sent no id_token; is the scope openid allowed?")
        claims = await self._check(
            tokens.id_token,
            exp={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": attempt.nonce},
        )
        if not isinstance(claims["sub"], str) or not claims["sub"]:
            raise OIDCError("the id_token names no subject")
        authorized = claims.get("azp")
        if authorized is not None and authorized != self._config.client_id:
            raise OIDCError("the id_token was made for another client (azp)")
        return tokens, claims

    async def refresh(self, refresh_token: str) -> Tokens:
        """New tokens for a refresh token. Raises OIDCError when it is not valid any more."""
        metadata = await self._read_metadata()
        return await self._token_request(
            metadata, grant_type="refresh_token", refresh_token=refresh_token
        )

    async def check_refreshed(self, id_token: str, subject: str) -> dict[str, Any]:
        """The claims of an id_token that came with a refresh (OpenID Connect Core 1.0, 12.2).

        Raises OIDCError, also when it is another person's.
        """
        claims = await self._check(id_token, exp={"essential": True}, sub={"essential": True})
        if claims["sub"] != subject:
            raise OIDCError("the refreshed id_token is another person's")
        return claims

    async def logout_url(self, id_token: str | None) -> str | None:
        """Where the browser ends its session at the provider, if the provider has such a page."""
        metadata = await self._read_metadata()
        endpoint = metadata.get("end_session_endpoint")
        if not isinstance(endpoint, str):
            return None
        parameters = {
            "client_id": self._config.client_id,
            "post_logout_redirect_uri": self._after_logout,
        }
        if id_token is not None:
            parameters["id_token_hint"] = id_token
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(parameters)}"

    async def check_logout_token(self, token: str) -> dict[str, Any]:
        """The claims of a back-channel logout token (OpenID Connect Back-Channel Logout 1.0, 2.6):
        `jti`, and `sid` or `sub` or both. Raises OIDCError."""
        claims = await self._check(
            token, types={"logout+jwt", "jwt"}, exp={"essential": True}, jti={"essential": True}
        )
        events = claims.get("events")
        if not isinstance(events, dict) or not isinstance(events.get(_LOGOUT_EVENT), dict):
            raise OIDCError("no logout token, as it has no logout event")
        if "nonce" in claims:
            raise OIDCError("no logout token, as it has a nonce")
        named = [name for name in ("sid", "sub") if claims.get(name)]
        if not named or not all(isinstance(claims[name], str) for name in [*named, "jti"]):
            raise OIDCError("the logout token names neither session nor subject")
        return claims

    # Requests to the provider

    async def _token_request(
        self, metadata: Mapping[str, Any], *, attempt: Attempt | None = None, **parameters: str
    ) -> Tokens:
        try:
            with trio.fail_after(self._config.timeout):
                async with self._client() as client:
                    answer = await client.fetch_token(
                        metadata["token_endpoint"],
                        **parameters,
                        **({"code_verifier": attempt.verifier} if attempt is not None else {}),
                    )
        except OAuthError as exc:
            raise OIDCError(f"the provider refused the request: {_short(exc.error)}") from exc
        except (httpx2.HTTPError, trio.TooSlowError) as exc:
            raise ProviderAway(f"the provider does not answer: {type(exc).__name__}") from exc
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ProviderAway("the provider's token answer is not what it must be") from exc
        return _tokens_of(answer)

    async def _read_metadata(self) -> Mapping[str, Any]:
        if self._metadata is not None and not self._is_old(self._metadata_read, _METADATA_AGE):
            return self._metadata
        async with self._lock:
            if self._is_old(self._metadata_read, _METADATA_AGE) or self._metadata is None:
                await self._reload_metadata()
        assert self._metadata is not None
        return self._metadata

    async def _reload_metadata(self) -> None:
        try:
            metadata = await self._get(self._metadata_url)
            self._check_metadata(metadata)
        except ProviderAway:
            if self._metadata is None:
                raise
            # What was read before is still the best there is; it is asked for again in a minute.
            self._metadata_read = trio.current_time() - _METADATA_AGE + _KEYS_RELOAD
            return
        self._metadata = metadata
        self._metadata_read = trio.current_time()

    def _check_metadata(self, metadata: Mapping[str, Any]) -> None:
        if metadata.get("issuer") != self.issuer:
            said = _short(metadata.get("issuer"))
            raise ProviderAway(f'the provider calls itself "{said}": set oidc.issuer to that')
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not isinstance(metadata.get(name), str):
                raise ProviderAway(f"the provider's metadata has no {name}")

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            with trio.fail_after(self._config.timeout):
                async with (
                    httpx2.AsyncClient(
                        verify=self._tls, timeout=self._config.timeout, trust_env=False
                    ) as client,
                    client.stream("GET", url, headers={"accept": "application/json"}) as response,
                ):
                    response.raise_for_status()
                    content = await _bounded(response)
            return read_json(content, dict[str, Any])
        except BadJson:
            raise ProviderAway(f"{url} is not a JSON object") from None
        except (httpx2.HTTPError, trio.TooSlowError, ValueError) as exc:
            raise ProviderAway(f"cannot read {url}: {type(exc).__name__}") from exc

    def _client(self) -> AsyncOAuth2Client:
        secret = self._secret.reveal() if self._secret is not None else None
        return AsyncOAuth2Client(
            self._config.client_id,
            secret,
            scope=_SCOPE,
            redirect_uri=self._redirect_uri,
            code_challenge_method="S256",
            # "none" is what makes a public client: any other word sends an empty secret.
            token_endpoint_auth_method=self._config.client_auth if secret else "none",
            verify=self._tls,
            timeout=self._config.timeout,
            trust_env=False,
        )

    # Checks

    def _check_issuer(self, query: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
        """RFC 9207 2.4: against mixing up the answers of two providers."""
        said = query.get("iss")
        required = metadata.get("authorization_response_iss_parameter_supported") is True
        if said != self.issuer and (said is not None or required):
            raise OIDCError("the answer came from another provider (iss)")

    async def _check(
        self, token: str, types: set[str] | None = None, **claims: Any
    ) -> dict[str, Any]:
        """The claims of a token that this provider signed for this client. Raises OIDCError."""
        decoded = await self._decode(token)
        kind = str(decoded.header.get("typ", "")).lower().removeprefix("application/")
        if types is not None and kind and kind not in types:
            raise OIDCError(f'a token of the type "{_short(kind)}" was not expected here')
        registry = jwt.JWTClaimsRegistry(
            leeway=int(self._config.clock_skew),
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": self._config.client_id},
            iat={"essential": True},
            **claims,
        )
        try:
            registry.validate(decoded.claims)
        except JoseError as exc:
            raise OIDCError(f"the token is not acceptable: {exc}") from exc
        _check_text(decoded.claims)
        return decoded.claims

    async def _decode(self, token: str) -> jwt.Token:
        keys = await self._read_keys()
        try:
            return jwt.decode(token, keys, algorithms=self._config.algorithms)
        except _NO_TOKEN as exc:
            if not self._is_old(self._keys_read, _KEYS_RELOAD):
                raise OIDCError(f"the token is not the provider's: {type(exc).__name__}") from exc
        keys = await self._read_keys(again=True)  # the provider may have new ones
        try:
            return jwt.decode(token, keys, algorithms=self._config.algorithms)
        except _NO_TOKEN as exc:
            raise OIDCError(f"the token is not the provider's: {type(exc).__name__}") from exc

    async def _read_keys(self, *, again: bool = False) -> KeySet:
        metadata = await self._read_metadata()
        async with self._lock:
            old = again and self._is_old(self._keys_read, _KEYS_RELOAD)
            if self._keys is None or old:
                document = await self._get(metadata["jwks_uri"])
                try:
                    self._keys = KeySet.import_key_set(document)  # type: ignore[arg-type]
                except (JoseError, ValueError, KeyError, TypeError) as exc:
                    raise ProviderAway("the provider's keys cannot be read") from exc
                self._keys_read = trio.current_time()
            return self._keys

    @staticmethod
    def _is_old(since: float, age: float) -> bool:
        return trio.current_time() - since >= age


async def _bounded(response: httpx2.Response) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > _METADATA_BYTES:
            raise ValueError("the answer is too large")
    return bytes(content)


def _tokens_of(answer: Mapping[str, Any]) -> Tokens:
    access, refresh, identity = (
        answer.get(name) for name in ("access_token", "refresh_token", "id_token")
    )
    lifetime = answer.get("expires_in", 0)
    if not isinstance(access, str) or not isinstance(lifetime, int | float):
        raise ProviderAway("the provider's token answer is not what it must be")
    return Tokens(
        access,
        refresh if isinstance(refresh, str) else None,
        identity if isinstance(identity, str) else None,
        float(lifetime),
    )


def _check_text(claims: Mapping[str, Any]) -> None:
    """Refuse what no database can keep: JSON can write one half of a surrogate pair."""
    try:
        json.dumps(claims, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise OIDCError("the token has a text that is not valid Unicode") from None


def _short(value: object) -> str:
    """A stranger's word for an error text: printable and not long."""
    return "".join(char if char.isprintable() else "?" for char in str(value)[:100])
