"""Every `code` of a problem document, with its status and what the caller can do.

docs/api.md lists them from here. A code keeps its meaning for good: programs act on it.
"""

from __future__ import annotations

__all__ = ["CODES"]

CODES: dict[str, tuple[int, str]] = {
    # The request itself
    "ambiguous_length": (400, "two fields give the length of the body: send one"),
    "invalid_body": (400, "the form cannot be read"),
    "invalid_json": (400, "the body is no JSON"),
    "path_refused": (400, 'the path to a service has a step "." or ".."'),
    "not_found": (404, "no such path, or no such object in your tenant"),
    "method_not_allowed": (405, "`Allow` lists the methods of this path"),
    "slow_body": (408, "no byte of the body came for `limits.body_stall`"),
    "body_too_large": (413, "the body is larger than `limits.max_body`"),
    "unsupported_media_type": (415, "send `application/json`"),
    "invalid_request": (422, "`errors` names each field that is not valid"),
    "request_refused": (400, "the request cannot be served; `detail` says why"),
    # Who asks
    "not_signed_in": (401, "sign in, or send an access token that has not ended"),
    "cross_origin": (403, "another site's page made the browser send this"),
    "insufficient_role": (403, "your role in the tenant may not do this"),
    "insufficient_scope": (403, "make an access token with the scope"),
    "no_browser_session": (403, "this is for people in a browser, not for programs"),
    "not_a_member": (403, "you are no member of the device's tenant: ask for an invitation"),
    "no_tenant": (403, "you are a member of no tenant: ask for an invitation"),
    "token_needed": (403, "browsers may not forward: send an access token"),
    "user_disabled": (403, "this person may not sign in any more"),
    "session_ended": (403, "the provider has ended this session meanwhile: sign in again"),
    # Signing in
    "logout_token_refused": (400, "the provider's logout token is not valid"),
    "sign_in_failed": (400, "the provider's answer is not valid"),
    "stale_sign_in": (400, "this browser began no such sign-in: begin again"),
    "provider_away": (502, "the sign-in provider does not answer"),
    # Terminals
    "access_denied": (409, "the person denied the sign-in"),
    "expired_token": (409, "the code was not confirmed in time: ask again"),
    "request_unknown": (409, "no such sign-in of a terminal"),
    # Records, and rules about them
    "bad_cursor": (409, "`after` is not from this list: begin without"),
    "changed_meanwhile": (409, "another request changed it first: try again"),
    "conflict": (409, "made at the same moment as something else: try again"),
    "default_tenant": (409, "the tenant `default` cannot be disabled"),
    "has_owner": (409, "the tenant has an owner, who can give roles"),
    "invalid": (409, "a value is out of its bounds; `detail` names field and bound"),
    "invitation_expired": (409, "ask for another invitation"),
    "invitation_unknown": (409, "no such invitation, or it was revoked"),
    "invitation_used": (409, "an invitation works once: ask for another"),
    "last_owner": (409, "make another member owner first"),
    "no_log": (409, "the agent is too old to show its log, or its `[log] keep_lines` is 0"),
    "device_refuses": (409, "the device's own rules of assistance do not allow this"),
    "not_asked": (409, "this lease does not wait for an approval"),
    "own_request": (409, "another person has to approve what you asked for"),
    "too_many": (409, "there are as many of these as allowed: remove one"),
    "lease_over": (409, "a lease that has ended never comes back: make another"),
    "not_enabled": (409, "the device is disabled or in quarantine: change that first"),
    "serial_taken": (409, "a device has this serial number: let the new one replace it"),
    "taken": (409, "a device or a tenant has this name"),
    "too_much": (409, "a token cannot have more rights than its maker"),
    # Pairing
    "code_burnt": (409, "too many wrong codes came close to this one: make another"),
    "code_expired": (409, "make another code"),
    "code_unknown": (409, "no such code: compare it letter by letter"),
    "code_used": (409, "a code works once: make another"),
    "key_expired": (409, "ask for another install key"),
    "key_revoked": (409, "ask for another install key"),
    "key_unknown": (409, "no such install key"),
    "key_used_up": (409, "the install key was used as often as it may be"),
    "name_needed": (409, "neither the code nor the device names the device"),
    "pairing_burnt": (409, "too many wrong codes came close to the device's: ask again"),
    "pairing_denied": (409, "an operator refused the device"),
    "pairing_expired": (409, "the request was not decided in time: ask again"),
    "pairing_over": (409, "it was decided, used or has expired"),
    "pairing_unknown": (409, "no such request"),
    "pairing_used": (409, "the credential was fetched already: ask again"),
    "wrong_key": (409, "the request was made with another SSH key"),
    "wrong_serial": (409, "the code or key is for another serial number"),
    "too_many_guesses": (
        429,
        "too many wrong codes came from your network or tenant: wait, or use an install key",
    ),
    "key_resting": (429, "the install key was used `pairing.key_budget` times within a short time"),
    "too_many_requests": (429, "too many devices wait for approval"),
    # Visitors
    "invalid_rule": (422, "`detail` says which part of the rule is not valid"),
    "no_gateway": (409, "`[gateway]` of api.toml names no gateway and its host key"),
    "no_ingress": (409, "no proxy has announced an address for visitors"),
    # Recordings
    "recording_elsewhere": (409, "this server reads no recordings: see `[recordings] folder`"),
    "recording_gone": (404, "the recording's file is gone"),
    "recording_piece_unknown": (404, "the recording has no such piece"),
    # Devices and commands
    "no_such_device": (404, "no device has this name, id or pattern"),
    "no_such_service": (404, "the device offers no service of this name"),
    "invalid_command": (422, "`detail` says which part of the command is not valid"),
    "not_repeatable": (409, "a WebSocket, or a request whose content was not kept completely"),
    "invalid_filter": (422, "`detail` says which condition on requests is not valid"),
    "too_many_devices": (422, "one command runs on 1,024 devices at most"),
    "device_answer_lost": (502, "the service broke the connection, or its answer is not HTTP"),
    "proxy_away": (502, "the device may be connected, but a proxy does not answer"),
    "service_away": (502, "the device could not connect to its service"),
    "no_websocket": (502, "the service answered the handshake with something else"),
    "unexpected_upgrade": (502, "for WebSockets use the path with `/ws/`"),
    "device_offline": (503, "the device is not connected"),
    "device_timeout": (504, "no answer within `proxies.forward_timeout`"),
    # The server
    "too_many_calls": (429, "you make more calls at once than `limits.max_calls_per_person`"),
    "too_many_changes": (429, "you made `limits.max_changes_per_minute` changes within a minute"),
    "internal_error": (500, "a bug: the server's log has the traceback"),
    "registry_away": (503, "the database does not answer: try again"),
    "registry_failed": (503, "the database is full, read-only, damaged or too new"),
    "too_many_terminals": (
        503,
        (
            "`limits.max_terminals` are open, 3/4 of these of your tenant, "
            "or your `max_terminals_per_person`"
        ),
    ),
    "too_many_followers": (
        503,
        (
            "`limits.max_events` follow already, 3/4 of these of your tenant, "
            "or your `max_events_per_person`"
        ),
    ),
}
"""The status of each code, and what happened or what to do; the document's `detail` says more."""
