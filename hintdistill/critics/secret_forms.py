"""Detect secrets that detect-secrets does not cover: keys by their prefix, and values by the name in front of them.

The text comes from outside, so each pattern is bounded: it examines only a few characters at any position. A
placeholder (`<your key>`, `$TOKEN`, `********`), a type (`string`) or a call is not a secret.
"""

from __future__ import annotations

import re

KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    # model and package hubs
    r"sk-(?:proj|svcacct|admin|ant|or)-[\w-]{16,}|hf_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{40,}"
    r"|pplx-[A-Za-z0-9]{32,}|nvapi-[\w-]{40,}|r8_[A-Za-z0-9]{36,}|tvly-[\w-]{20,}|lsv2_(?:pt|sk)_[0-9a-f]{30,}"
    r"|pcsk_[A-Za-z0-9_]{30,}|npm_[A-Za-z0-9]{36}|rubygems_[0-9a-f]{40,}|dckr_pat_[\w-]{20,}"
    # code hosts and trackers
    r"|github_pat_[A-Za-z0-9_]{22,}|gl(?:pat|dt|rt|ft|soat|cbt|ptt|imt)-[\w-]{16,}|ATATT3[\w=-]{30,}|lin_api_[A-Za-z0-9]{30,}"
    r"|figd_[\w-]{30,}|ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{40,}|PMAK-[0-9a-f]{20,}|sntry[su]_[\w=.-]{30,}"
    # clouds and services
    r"|AIza[\w-]{35}|ya29\.[\w-]{30,}|GOCSPX-[\w-]{20,}|dapi[0-9a-f]{32}|do[opr]_v1_[0-9a-f]{40,}|hv[sb]\.[\w-]{24,}"
    r"|pul-[0-9a-f]{40}|shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{24,}"
    r"|xapp-\d-[\w-]{20,}|gl(?:c|sa)_[A-Za-z0-9_=+/]{30,}|NRAK-[A-Z0-9]{20,}|key-[0-9a-f]{32}|AGE-SECRET-KEY-1[0-9A-Z]{50,}"
    r"|dp\.(?:pt|st|ct|sa)\.[\w.-]{30,}|EAA[A-Za-z0-9]{60,}|(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"
    r")"
)
"""Keys recognisable by their prefix that the library does not detect."""

WEBHOOK = re.compile(
    r"discord(?:app)?\.com/api/webhooks/\d{10,}/[\w-]{40,}|hooks\.slack\.com/(?:services|workflows)/[\w/]{20,}"
    r"|webhook\.office\.com/webhookb2/[\w@-]{30,}"
)
PRIVATE = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d|BEGIN SSH2 ENCRYPTED"
)
HASH = re.compile(r"\$(?:2[aby]|5|6|y|7|apr1|argon2id?)\$[\w./+=,$-]{20,}")

_WORD = (
    r"passw(?:or)?d|passwd|passphrase|passcode|(?<![a-z])pwd?|(?<![a-z])pass|secret|token|credentials?"
    r"|(?:api|access|auth|private|secret|signing|encryption|account|master|license|shared[_-]?access)[_-]?key"
)
_VALUE = r"(?P<value>[^\s\"'`,;<>(){}\[\]\\|]{6,})"
_END = r"(?=[\s\"'`,;<>)}\]\\|]|$)"

_NAMING = re.compile(
    rf"(?:{_WORD})[\w-]{{0,20}}"
    # name=value, "name": "value", name => value; `name` is value; --name value, which the caller checks
    r"(?:[\"'`]?\s{0,3}(?::=|=>|=|:)\s{0,3}[\"'`]?|[\"'`]?\s{1,3}(?:is|was|are|to|as)(?:\s{1,3}now)?:?\s{1,3}[\"'`]?|(?P<space> )[\"']?)"
    rf"{_VALUE}{_END}",
    re.IGNORECASE,
)
"""Pattern of a value after a word that names a secret; the rest of the name precedes the match."""
_BEFORE = re.compile(r"[\w.-]{0,40}\Z")
NAMED = (
    # netrc
    re.compile(rf"\blogin\s+\S{{1,60}}\s+(?P<name>password)\s+{_VALUE}{_END}", re.IGNORECASE),
    # headers
    re.compile(
        r"(?P<name>x-(?:[a-z]{1,20}-){0,3}(?:key|token|secret|auth)|(?:proxy-)?authorization)[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
        rf"(?:(?:bearer|basic|token|digest|apikey|bot)\s+)?{_VALUE}{_END}",
        re.IGNORECASE,
    ),
    re.compile(rf"\b(?P<name>bearer|basic)\s+(?P<value>[\w.~+/=-]{{16,}}){_END}", re.IGNORECASE),
    re.compile(
        r"\b(?P<name>(?:set-)?cookie)[\"']?\s{0,3}:\s{0,3}[\"']?[\w.-]{1,60}=(?P<value>[\w.%+/=-]{16,})",
        re.IGNORECASE,
    ),
    # parameters of a URL
    re.compile(
        r"[?&#](?P<name>[\w-]{0,30}?(?:key|token|secret|password|passwd|pwd|signature|sig|auth|sas)[\w-]{0,10})=(?P<value>[^\s&#\"'<>\\]{8,})",
        re.IGNORECASE,
    ),
    # programs that take a password behind a letter
    re.compile(
        rf"\b(?P<name>curl|wget|http|https)\b[^\n]{{0,200}}?\s(?:-u|--user|-a|--auth)[ =]?[\"']?[^\s:\"']{{1,60}}:{_VALUE}",
        re.IGNORECASE,
    ),
    re.compile(rf"\b(?P<name>mysql(?:dump|admin)?|mariadb(?:-dump)?)\b[^\n]{{0,200}}?\s-p[\"']?{_VALUE}{_END}"),
    re.compile(rf"\b(?P<name>sshpass|smbclient|sqlcmd|docker\s+login)\b[^\n]{{0,200}}?\s-[pPU]\s?[\"']?{_VALUE}{_END}"),
    re.compile(rf"\b(?P<name>redis-cli)\b[^\n]{{0,200}}?\s-a\s?[\"']?{_VALUE}{_END}"),
    re.compile(rf"\b(?P<name>ldap(?:search|modify|add|whoami))\b[^\n]{{0,200}}?\s-w\s?[\"']?{_VALUE}{_END}"),
)
"""Patterns of values that a header, a parameter or a program marks as secret, with the groups `name` and `value`."""

_NOT_NAMES = re.compile(
    r"page|next|prev|cursor|continu|sync|max|min|num|count|total|limit|used|usage|pad|eos|bos|unk|sep|mask|stop|special|prompt"
    r"|completion|cached|per_|tokens\b|tokenizer|tokeniz|type|name|field|length|policy|hint|url|uri|file|path|id$|_at$|expire"
    r"|require|reset|valid|passed|passes|passing|compass|passenger|passport",
    re.IGNORECASE,
)
_PROGRAM = re.compile(r"curl|wget|https?|sqlcmd|sshpass", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"^(?:\$|%|<|\{|@|\.\.\.|\*|x{4}|env\b|os\.|process\.|self\.|this\.|args\.|config\.|settings\.|none|null|true|false|string|str\b"
    r"|undefined|redacted|\[key\]|your|my[_-]|changeme|example|placeholder|optional|required|https?:|/|~/|\./)|(?:\.|\*){4}|x{6}|\($",
    re.IGNORECASE,
)


def named_secrets(text: str) -> bool:
    """Return whether the text contains a value that a name, a header, a parameter or a program marks as secret."""
    if any(_is_secret(m["name"], m["value"]) for pattern in NAMED for m in pattern.finditer(text)):
        return True
    for match in _NAMING.finditer(text):
        before = _BEFORE.search(text[max(0, match.start() - 40) : match.start()])
        name = (before[0] if before else "") + text[match.start() : match.start("value")].rstrip("\"'`:=> \t\n")
        if (match["space"] is None or name.startswith("-")) and _is_secret(name.strip("-.").split()[0], match["value"]):
            return True
    return False


def _is_secret(name: str, value: str) -> bool:
    value = value.strip(".:!?*_")
    if len(value) < 6 or (_NOT_NAMES.search(name) and not _PROGRAM.fullmatch(name)) or _PLACEHOLDER.search(value):
        return False
    if re.fullmatch(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+", name) and not value.isdigit():
        # an environment variable by its spelling: any value
        return not re.fullmatch(r"[A-Z_]+|[a-z]{1,7}", value)
    digits, letters = any(c.isdigit() for c in value), any(c.isalpha() for c in value)
    marks = any(c in "!@#$%^&*?~+=" for c in value)
    return letters and (digits or marks)
