"""URLs: what is fetched, what is refused, and what is never shown."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jax_edm2.converter.cli.convert import edm2_convert
from jax_edm2.converter.cli.sample import edm2_sample
from jax_edm2.converter.cli.verify import edm2_verify
from jax_edm2.converter.downloads import download
from jax_edm2.converter.downloads.cache import Cache
from jax_edm2.converter.downloads.download import DownloadError, fetch
from jax_edm2.converter.downloads.urls import HIDDEN, URLError, file_name, parse, public_url
from jax_edm2.converter.sources import Location
from tests.support.downloads import fails
from tests.support.server import Server, serve

REFUSED = {
    "ftp://a.example/x.pkl": "only http and https",
    "file:///etc/passwd": "only http and https",
    "http://": "no host name",
    "http:///x.pkl": "no host name",
    "http://u@[::1/x": "is none",
    "http://[::1": "is none",
    "http://[::1]x/": "is none",
    "http://[v1.a]/": "is none",
    "http://[127.0.0.1]/": "is none",
    "http://:80/x": "is none",
    "http://a:0/": "is none",
    "http://a:65536/": "is none",
    "http://a:99999/": "is none",
    f"http://a:{'9' * 5000}/": "is none",
    "http://a:٨٠/": "is none",
    "http://a:+8/": "is none",
    "http://a:8:8/": "is none",
    "http://a..b/": "is none",
    "http://.a/": "is none",
    f"http://{'a' * 64}.com/": "is none",
    f"http://{'a.' * 130}com/": "is none",
    "http://a%2eb/": "is none",
    "http://a b/": "holds a space",
    "http://a/b c": "holds a space",
    "http://a/\n": "holds a space",
    "ht\ntp://a/": "holds a space",
    "http://a/\x00": "holds a space",
    "http://a/\u202e": "holds a space",
    "http://a/\udcff": "holds a space",
    "http://a\\b": "holds a space, a backslash",
    "http:\\\\a\\b": "holds a space, a backslash",
    "http://a/" + "b" * 100_000: "longer than 8,192",
}


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url[:20]))
def test_what_is_refused(url, tmp_path):
    with pytest.raises(DownloadError, match=REFUSED[url]) as error:
        fetch(url, Cache(tmp_path))
    assert str(error.value).startswith(f"{HIDDEN}: ")
    assert len(str(error.value)) < 150
    result = CliRunner().invoke(edm2_convert, ["--", url], standalone_mode=False)
    assert isinstance(result.exception, DownloadError), result.exception
    assert list(tmp_path.iterdir()) == []


def test_what_is_shown():
    for url, shown in {
        "https://u:p@h.example:8/a/b.pkl?t=1#f": "https://h.example:8/a/b.pkl",
        "HTTP://H.example": "http://h.example",
        "http://u:p@ss@h/x": "http://h/x",
        "http://[::1]:80/x%20y": "http://[::1]:80/x%20y",
        "http://ä.example/ü": "http://%C3%A4.example/%C3%BC",
        'http://h/<b>"': "http://h/%3Cb%3E%22",
        "http://h/x;jsessionid=1?y": "http://h/x",
        "http://h/x?who=a%40b": "http://h/x",
        "http://h/a@b": HIDDEN,
        "http://h/a%2540b": HIDDEN,
        "http://h?a%40b": HIDDEN,
        "http://h/x?a@b": HIDDEN,
    }.items():
        assert public_url(url) == shown
    assert parse("http://u%40v:p%3A@h:80/x?y#z").request == "http://h/x?y"
    assert parse("http://u%40v:p%3A@h/").user == ("u@v", "p:")
    assert file_name("https://h.example/a/b%20c.pkl?x=/y") == "b_20c.pkl"
    assert file_name("https://h.example/") == file_name("http://u:p@[h") == "download"


# A password is shown nowhere

USER, SECRET = "aLiCe", "sEcReT"
SEPARATORS = ("://", ":", ":/", ":///", ":\\\\", "://\\", ":/\\", ":// ", ":\t//", "://h\\@", "://h@")
SCHEMES = ["ftp://", "htp:\\\\", *(f"{scheme}{each}" for scheme in ("http", "HTTPS", " h\nttp") for each in SEPARATORS)]
PIECES = [*":/\\@?#[]%;=&. \n\té\u202ea8-_", "h.example", "::1", "%40", "%5c", "//"]
JUNK = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
AT = st.sampled_from(["@", "@", "\\@", "@@", "%40@", "@h\\"])
URLS = st.builds(
    lambda scheme, before, *rest: "".join((scheme, before, USER, rest[0], SECRET, *rest[1:])),
    st.sampled_from(SCHEMES), JUNK,
    st.sampled_from([":", ":", ":x", "%3a", ":/", ":?", ":#", ":8/", ":8?", ":[", ":\\"]), AT,
    st.builds(lambda host, rest: host + rest, st.sampled_from(["h.example", "[::1]", "", "h:99999", "h/x.pkl"]), JUNK),
)  # fmt: skip


def hides(text):
    return USER.lower() not in text.lower() and SECRET.lower() not in text.lower()


@settings(max_examples=300)
@given(URLS)
@example(f"http://host\\@{USER}:{SECRET}@evil/")
@example(f"http:\\\\{USER}:{SECRET}@host/x.pkl")
@example(f"http://{USER}:8/{SECRET}@host/x.pkl")
@example(f"http://host//{USER}:{SECRET}@evil/x.pkl")
def test_a_password_in_a_url(url):
    assert hides(public_url(url))
    assert hides(file_name(url))
    location = Location(url)
    assert location.remote
    assert hides(location.name)
    assert hides(location.stem)
    with pytest.raises(DownloadError) as error:
        fetch(url, Cache(Path("no-such-folder")), offline=True)
    assert hides(str(error.value))


@settings(max_examples=300)
@given(
    URLS
    | st.builds(lambda url: url.partition(":")[2], URLS)
    | st.builds(lambda url: "//" + url.partition("//")[2], URLS)
)
@example(f"//{USER}:{SECRET}@host/x.pkl")
@example(f"/\\{USER}:{SECRET}@host/x.pkl")
@example(f"http://{USER}:{SECRET}@host/x.pkl")
def test_a_password_in_a_redirect(location):
    try:
        said = parse("https://h.example/x.pkl").join(location).shown
    except URLError as error:
        said = str(error)
    assert hides(said)


def test_redirects():
    here = parse("https://u:p@h.example/a/x.pkl?t")
    assert here.join("y z.pkl").request == "https://h.example/a/y%20z.pkl"
    assert here.join("//o.example/y").request == "https://o.example/y"
    assert here.join("?q").user is None
    for location, text in {
        "http://o.example/x?t": "^leads from https to http://o.example/x$",
        "https://u@o.example/x": "^leads to https://o.example/x with a user name in it",
        "//u:p@o.example": "with a user name in it",
        "ftp://o.example/x": "only http and https",
        "http://[::1/x": "is none|has no host name",
        "\\\\o.example": "a backslash",
        "/x\n": "control character",
        "x" * 10_000: "longer than",
    }.items():
        with pytest.raises(URLError, match=text):
            here.join(location)
    assert here.trusts(here.join("/y"))
    assert here.trusts(here.join("https://H.example:443/y"))
    assert parse("http://u:p@h/").trusts(parse("https://h/"))
    for target in ("https://h.example:444/", "https://o.example/", "https://x.h.example/"):
        assert not here.trusts(parse(target))
    assert not parse("http://u:p@h:8/").trusts(parse("https://h/"))


def test_who_is_told_the_password(tmp_path, digits_pkl):
    """The server that it is for, also after a redirect on the same server, and no other."""
    with Server(digits_pkl.read_bytes()) as other, Server(digits_pkl.read_bytes()) as server:

        def answer(handler, number):
            if number < 2:
                handler.send_response(302)
                handler.send_header("Location", "/edm2/again" if number == 0 else other.url())
                handler.send_header("Content-Length", "0")
                handler.end_headers()

        server.answer = answer
        fetch(server.url().replace("//", f"//{USER}:{SECRET}%3a@"), Cache(tmp_path))
        assert [request["Authorization"] for request in server.requests] == ["Basic YUxpQ2U6c0VjUmVUOg=="] * 2
        assert [request["Authorization"] for request in other.requests] == [None]


@pytest.mark.parametrize("location", [
    f"http://{USER}:{SECRET}@127.0.0.1:1/x", f"//{USER}:{SECRET}@127.0.0.1:1/x", f"http://127.0.0.1\\@{USER}:{SECRET}@h/x",
    f"http:\\\\{USER}:{SECRET}@127.0.0.1/x", f"http://{USER}:{SECRET}@[::1/x", f"http://127.0.0.1:1/x?token={SECRET}",
    f"ftp://{USER}:{SECRET}@127.0.0.1/x", f"http://{USER}:{SECRET}@/x", f"http://{USER}:{SECRET}@a..b/x",
])  # fmt: skip
def test_a_redirect_to_what_holds_a_password(tmp_path, monkeypatch, capfd, location):
    monkeypatch.setattr(download, "RETRIES", 0)

    def answer(handler, _number):
        handler.send_response(302, f"for {SECRET}")
        handler.send_header("Location", location)
        handler.end_headers()

    with Server(b"", answer) as server, pytest.raises(DownloadError) as error:
        fetch(server.url(), Cache(tmp_path))
    assert hides(str(error.value) + "".join(capfd.readouterr()))


def test_a_password_in_the_proxy(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for proxy in ("127.0.0.1:1", "[::1", "a..b", "127.0.0.1:99999"):
        monkeypatch.setenv("http_proxy", f"http://{USER}:{SECRET}@{proxy}")
        monkeypatch.setenv("https_proxy", f"http://{USER}:{SECRET}@{proxy}")
        for url in ("http://h.example/x.pkl", "https://h.example/x.pkl"):
            with pytest.raises(DownloadError, match="proxy") as error:
                fetch(url, Cache(tmp_path))
            assert hides(str(error.value))


@pytest.mark.parametrize("command", [edm2_convert, edm2_verify, edm2_sample], ids=lambda command: command.name)
@pytest.mark.parametrize("url", [f"http://{USER}:{SECRET}@[::1/x.pkl", f"http:\\\\{USER}:{SECRET}@h/x.safetensors",
                                 f"http://{USER}:{SECRET}@127.0.0.1:1/x.safetensors?token={SECRET}"])  # fmt: skip
def test_commands(tmp_path, monkeypatch, command, url):
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    arguments = ["--net", url, "--outdir", str(tmp_path / "out")] if command is edm2_sample else [url]
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert result.exception is not None
    assert hides(str(result.exception) + result.output)


def test_what_a_server_says_of_a_password(tmp_path, digits_pkl):
    """It is told it, and may send it back."""

    def answer(handler, _number):
        serve(handler, status=404, headers={"Content-Type": SECRET})

    with Server(digits_pkl.read_bytes(), answer) as server:
        fails(server, Cache(tmp_path), "answers 404 Not Found")
