"""A person who confirms a terminal's sign-in in a browser."""

from __future__ import annotations

from support.installation import Installation
from support.oidc import Browser

__all__ = ["decide", "signed_in_browser"]


async def signed_in_browser(installation: Installation, name: str) -> Browser:
    """A browser of somebody who is an operator."""
    api, provider = installation.api, installation.provider
    users = api.running.api.installation.users
    await users.grant(
        installation.owner.tenant_id, "operator", issuer=provider.issuer, subject=name, force=True
    )
    provider.claims.update(sub=name, email=f"{name}@example.com", email_verified=True)
    browser = api.browser()
    begin = f"{api.base}/api/auth/login?return_to=/api/auth/me"
    page = await browser.request("GET", begin, stop_at=provider.issuer)
    assert isinstance(page, str)
    query = provider.callback_for(page, code=f"code-of-{name}")
    answer = await browser.get(f"{api.base}/api/auth/callback?{query}")
    assert answer.status_code == 200, answer.text
    return browser


async def decide(installation: Installation, page: str, decision: str) -> str:
    """What a person reads who follows the link and decides."""
    browser = await signed_in_browser(installation, "alice")
    question = await browser.get(page)
    assert question.status_code == 200, question.text
    code = page.partition("code=")[2]
    assert code in question.text
    assert "alice@example.com, operator" in question.text
    assert "frame-ancestors 'none'" in question.headers["content-security-policy"]
    answer = await browser.post(page.partition("?")[0], data={"code": code, "decision": decision})
    again = await browser.post(page.partition("?")[0], data={"code": code, "decision": "approve"})
    assert again.status_code == 409
    assert "used already" in again.text
    return answer.text
