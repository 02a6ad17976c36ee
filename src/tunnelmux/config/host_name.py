"""Host names in DNS form, so that two spellings of one name compare equal."""

from __future__ import annotations

__all__ = ["to_a_label_pattern", "to_a_labels"]


def to_a_labels(host: str) -> str:
    """The name with its labels in ASCII (RFC 5890 section 2.3.2.1); an ASCII name is unchanged. An
    address in full-width digits becomes a plain address. Raises ValueError for a name that DNS
    cannot hold.
    """
    if host.isascii():
        return host
    import idna  # imported here: its tables are large, and few names need them

    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise ValueError("is not a host name that DNS can hold") from None


def to_a_label_pattern(pattern: str) -> str:
    """The same for a pattern with `*` and `?`: labels without wildcards are converted. Raises
    ValueError for a label with a wildcard and letters outside ASCII, which can match no name in
    DNS.
    """
    if pattern.isascii():
        return pattern
    labels = pattern.replace("\u3002", ".").split(".")
    for index, label in enumerate(labels):
        if label.isascii():
            continue
        if "*" in label or "?" in label:
            raise ValueError(
                f'has "{label}", which no name in DNS can match: write the whole label, or the '
                "beginning of what it is in DNS (xn--…)"
            )
        labels[index] = to_a_labels(label)
    return ".".join(labels)
