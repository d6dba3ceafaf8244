"""The secret scan: sixty forms that it finds, what it lets through, and that no text takes it long."""

from __future__ import annotations

import html
import json
from urllib.parse import quote

import pytest

from hintdistill.critics.secrets import kinds

HEX = "0123456789abcdef"
MIXED = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"
WORD = "Tr0ub4dor-and-3"
FORMS = {
    "env": f"DB_PASSWORD={WORD}",
    "env of letters": "DB_PASSWORD=correcthorsebattery",
    "export": f"export SERVICE_API_KEY={MIXED}",
    "dotenv lines": f"HOST=x\nMY_SECRET={WORD}\nPORT=1",
    "yaml": f"  password: {WORD}",
    "yaml secret": f"client_secret: {MIXED}",
    "ini": f"pwd = {WORD}",
    "toml": f'auth_token = "{MIXED}"',
    "properties": f"spring.datasource.password={WORD}",
    "ruby": f":secret_key => '{MIXED}'",
    "go": f'apiKey := "{MIXED}"',
    "json": json.dumps({"accessToken": MIXED}),
    "json password": json.dumps({"user": "ann", "password": WORD}),
    "connection string": f"Server=db;Uid=sa;Pwd={WORD};",
    "prose is": f"the password is {WORD}",
    "prose was": f"My passphrase was {WORD}.",
    "prose reset": f"I set your password to {WORD}",
    "prose marks": f"Use password: `{WORD}`",
    "bearer": f"Authorization: Bearer {MIXED}",
    "bearer alone": f"sent with bearer {MIXED}",
    "basic": "Authorization: Basic YWRtaW46aHVudGVyMg==",
    "token header": f"Authorization: token {MIXED}",
    "x-api-key": f"X-Api-Key: {MIXED}",
    "x-auth-token": f"x-auth-token: {MIXED}",
    "header in json": json.dumps({"headers": {"X-API-KEY": MIXED}}),
    "cookie": f"Cookie: session={MIXED}",
    "set-cookie": f"Set-Cookie: sid={MIXED}; HttpOnly",
    "query": f"GET https://x.example/v1/items?page=2&api_key={MIXED}",
    "query key": f"https://maps.example/geo?key={MIXED}",
    "query signature": f"https://s3.example/f?X-Amz-Signature={HEX * 4}",
    "fragment": f"https://app.example/#access_token={MIXED}",
    "url login": f"postgres://ann:{WORD}@db.example/x",
    "curl -u": f"curl -s -u ann:{WORD} https://x.example",
    "curl --user": f"curl --user 'ann:{WORD}' https://x.example",
    "curl header": f"curl -H 'Authorization: Bearer {MIXED}' https://x.example",
    "httpie": f"http -a ann:{WORD} https://x.example",
    "mysql": f"mysql -h db -u root -p{WORD} shop",
    "sshpass": f"sshpass -p {WORD} ssh ann@host",
    "docker login": f"docker login -u ann -p {WORD}",
    "redis": f"redis-cli -h r -a {WORD} ping",
    "ldap": f"ldapsearch -D cn=ann -w {WORD} -b dc=x",
    "--password": f"tool --password {WORD} run",
    "--token=": f"tool --token={MIXED}",
    "netrc": f"machine h login ann password {WORD}",
    "pgpassword": f"PGPASSWORD={WORD} psql -h db",
    "github fine": "github_pat_11ABCDEFG0abcdefghijkl_" + "A1b2C3d4E5" * 5,
    "github": "ghp_" + MIXED[:36],
    "gitlab": "glpat-" + MIXED[:20],
    "anthropic": "sk-ant-api03-" + MIXED,
    "openai": "sk-proj-" + MIXED,
    "xai": "xai-" + MIXED * 2,
    "databricks": "dapi" + HEX * 2,
    "digitalocean": "dop_v1_" + HEX * 4,
    "vault": "hvs." + MIXED,
    "google oauth": "ya29." + MIXED,
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "aws secret": "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "jwt": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk",
    "discord": f"https://discord.com/api/webhooks/123456789012345678/{MIXED}{MIXED}",
    "hash": "ann:$2b$12$" + MIXED + MIXED[:13],
    "e-mail": "write to ann@example.com",
}
SPELLED = {
    "json in json": lambda s: json.dumps({"a": json.dumps({"b": s})}),
    "five deep": lambda s: json.dumps(json.dumps(json.dumps(json.dumps(json.dumps(s))))),
    "percent": lambda s: quote(s, safe=""),
    "html": lambda s: html.escape("".join(f"&#{ord(c)};" for c in s)).replace("&amp;", "&"),
    "invisible": lambda s: "\u200b".join(s),
    "wide": lambda s: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in s),
    "waved through": lambda s: s + "  # pragma: allowlist secret",
}
CLEAN = [
    "max_tokens: 4096, prompt_tokens=1234567, total_tokens: 1a2b3c4d",
    '{"password": {"type": "string", "description": "the password of at least 8 characters"}}',
    "password = os.environ['DB_PASSWORD_1']; token = get_token(user1)",
    "export API_KEY=<your-key-1>; export TOKEN=$TOKEN_2; password: ********",
    "nextPageToken: CAUQAA9xdkjdk, order 1420-9981, id 6f1e2d3c-0000-4000-8000-0123456789ab",
    "def login(user: str, password: str | None = None, token: Optional[str] = None)",
    "the password is required; reset your password at step 2",
    "tokens per second: 120.5; secretary: room 12",
]


def test_there_are_sixty_forms():
    assert len(FORMS) >= 60


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_found_and_never_repeated(form):
    found = kinds(FORMS[form])
    assert found and not [k for k in found if WORD in k or MIXED in k]
    assert kinds(json.dumps({"content": f"before {FORMS[form]} after"}))


@pytest.mark.parametrize("spelling", SPELLED)
@pytest.mark.parametrize("form", ["yaml", "bearer", "github fine", "curl -u"])
def test_a_spelling_hides_nothing(form, spelling):
    assert kinds(SPELLED[spelling](FORMS[form]))


@pytest.mark.parametrize("text", CLEAN)
def test_what_is_no_secret_passes(text):
    assert kinds(text) == []
