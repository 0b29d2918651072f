from __future__ import annotations

import base64
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import names
from appliance.dns.keyfile import KeyFileError, read_keys
from appliance.dns.tsig import Key
from tests.effort import examples

SECRET = base64.b64encode(bytes(range(32))).decode()


def test_a_key_as_tsig_keygen_writes_it() -> None:
    text = f'key "Update.Example" {{\n\talgorithm hmac-sha256;\n\tsecret "{SECRET}";\n}};\n'
    (key,) = read_keys(text, filename="f")
    assert key == Key(names.from_text("update.example"), names.from_text("hmac-sha256"), bytes(range(32)))
    assert SECRET not in repr(key)
    assert "\\x01" not in repr(key)


@pytest.mark.parametrize(
    "algorithm", ["hmac-sha1", "hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"]
)
def test_tsig_keygen_itself(algorithm: str) -> None:
    program = shutil.which("tsig-keygen", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("the program tsig-keygen is not installed")
    text = subprocess.run([program, "-a", algorithm, "k1"], capture_output=True, text=True, check=True).stdout
    (key,) = read_keys(text, filename="f")
    assert key.algorithm == names.from_text(algorithm)
    assert len(key.secret) == key.mac_octets


def test_comments_bare_words_and_several_keys() -> None:
    text = f"""# one
    key a {{ secret {SECRET}; algorithm HMAC-SHA512.; }}; // and
    /* key x {{ }};
    */ key "b" {{algorithm "hmac-sha256";secret "{SECRET}";}};"""
    assert [names.to_text(key.name) for key in read_keys(text, filename="f")] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "f:1: there is no key here"),
        ("# nothing\n", "there is no key here"),
        ("zone a {", "f:1: 'key' is expected here"),
        ("key a", "f:1: '{' is missing here"),
        ("\nkey a {\n algorithm hmac-md5;", "f:3: the algorithm 'hmac-md5' is not one of hmac-sha1, "),
        ("key a { secret Zm9v", "f:1: the secret has only 3 octets"),
        ("key a { secret Zm9v!", "f:1: the secret is not base64"),
        ("key a { secret }", "f:1: the secret"),
        ("key a { other b;", "f:1: 'other' is not expected here"),
        ("key a.. { ", "has an empty label"),
        (f"key a {{ secret {SECRET}; }};", "the key a needs an algorithm and a secret"),
        (f"key a {{ secret {SECRET}; secret {SECRET}; }};", "'secret' is not expected here"),
        (f"key a {{ algorithm hmac-sha256; secret {SECRET}; }}; " * 2, "the key a is here twice"),
        (f"key a {{ algorithm hmac-sha256; secret {SECRET}; }}", "';' is missing here"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(text: str, error: str) -> None:
    with pytest.raises(KeyFileError, match="f:") as raised:
        read_keys(text, filename="f")
    assert error in str(raised.value)
    assert "Zm9v" not in str(raised.value)


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.sampled_from(["key", '"a"', "{", "}", ";", "algorithm", "hmac-sha256", "secret", SECRET, "#"])
    )
)
def test_any_text_gives_one_error_only(words: list[str]) -> None:
    try:
        read_keys(" ".join(words), filename="f")
    except KeyFileError:
        pass
